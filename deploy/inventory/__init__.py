"""
The fleet file `inventories/NAME.yml`: its schema, loading, host selection and secrets.

Never connects to a host.
"""
