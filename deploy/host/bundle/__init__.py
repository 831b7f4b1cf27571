"""
Bundles on a host: manifest, archive, verification, staging, venvs, retention.
"""
