"""
The demo: the toolkit's main operations in one run, under live traffic, on the lab only.
"""
