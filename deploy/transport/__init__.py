"""
How we reach a host: run a command, put a file, each under a deadline.  Decides nothing.
"""
