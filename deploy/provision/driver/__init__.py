"""
The NVIDIA driver of a host, as a plan: repository, preferences, packages, holds, modules, proof.

A plan is a value with a digest, computed from the fleet file and the facts of the host.  Nothing
here decides which driver a fleet should have, and nothing reboots a host.
"""
