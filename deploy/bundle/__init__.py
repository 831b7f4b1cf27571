"""
Bundles on the controller: build, sign, store, check, send.  Immutable, named by their digest.
"""
