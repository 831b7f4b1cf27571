"""
Plans the memory of a model before it is loaded: `footprint` counts the parts, `plan`
gives the rest to the KV cache, `report` puts it into words.  Pure.
"""
