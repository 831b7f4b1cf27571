"""
Chooses a TCP port for a server that a test starts.
"""

import contextlib
import random
import socket

# Below the ports that the kernel gives to clients: none of those may take it meanwhile.
_PORTS = range(20_000, 32_000)
_RANDOM = random.SystemRandom()  # a test may seed the other one


def free_port(address=""):
    """
    Return a port that nothing is bound to on *address*, an IP address; "": any IPv4 address.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        port = _RANDOM.choice(_PORTS)
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port
