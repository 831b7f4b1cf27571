"""
What a model takes of a device, said before anything starts: `footprint` counts the parts, `plan`
gives the rest to the KV cache, `report` puts it into words.  Pure.
"""
