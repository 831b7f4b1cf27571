"""
API keys of a fleet: adds, rotates, revokes and lists them, on all hosts at once.

Never needs a lease, never changes which release serves, and never stores a token.
"""
