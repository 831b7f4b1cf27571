"""
Runs on a GPU host under systemd: answers requests.  Ships alone and knows nothing of `deploy`.
"""
