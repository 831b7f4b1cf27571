"""
The host's own way back: a change that is not confirmed in time, the host takes back by itself.

It needs no operator, no network, no package manager and no free disk space.
"""
