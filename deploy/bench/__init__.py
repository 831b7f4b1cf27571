"""
Times the controller over hosts that are simulated in a process of their own.  Touches no host.
"""
