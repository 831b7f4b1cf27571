"""
Code that runs on the host, sent over by `inv provision`.  Python 3.9, standard library only.
"""
