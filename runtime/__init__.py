"""
The runtime: serves one release on a GPU host, under systemd.  Never imports `deploy`.
"""
