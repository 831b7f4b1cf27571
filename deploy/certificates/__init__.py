"""
Certificates of the public port, on the operator's machine: checks them, issues them from a
fleet's own authority, reads what hosts show.  Never reaches a host.
"""
