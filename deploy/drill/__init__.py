"""
Injects one fault at one journal line of a release or a rollback on lab hosts, for every pair.

Reads hosts from inside, and never by the code under test.  Touches lab hosts only.
"""
