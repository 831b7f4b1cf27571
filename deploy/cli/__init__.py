"""
The command line's own work: reports, confirmation, progress, exit codes.  Decides nothing.
"""
