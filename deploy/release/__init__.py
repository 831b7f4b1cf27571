"""
Moving a fleet from one release to the next, and back.  Never changes packages or drivers.
"""
