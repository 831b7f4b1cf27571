"""
What we want: the hosts, groups and settings of one `inventories/NAME.yml`.  Never touches a host.
"""
