"""
The main job in one run, under live traffic, on the lab.  Never touches any other fleet.
"""
