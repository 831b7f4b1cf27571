"""
The thing that is shipped: immutable, named by its contents, signed.  Opens no connection itself.
"""
