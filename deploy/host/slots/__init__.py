"""
The two slots of a host: units, traffic, golden prompts, counters.
"""
