"""
The real transports, clocks, stores and owners, a module for each kind of task.  Prints nothing.
"""
