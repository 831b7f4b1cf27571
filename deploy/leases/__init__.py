"""
Takes leases of hosts, renews them beside the work, and gives them back.  Changes nothing else.
"""
