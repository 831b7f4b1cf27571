"""
`python -I acme_hook.py SOCKET`: certbot runs it for each challenge.  Hands the challenge to the
process at SOCKET, which started certbot, and exits with 0 once that has made the answer public.

Standard library only.
"""

import json
import os
import socket
import sys

FIELDS = ("CERTBOT_DOMAIN", "CERTBOT_VALIDATION", "CERTBOT_TOKEN")
DONE = b"done\n"


def main() -> int:
    challenge = {name: os.environ.get(name, "") for name in FIELDS}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(sys.argv[1])
        client.sendall(json.dumps(challenge).encode() + b"\n")
        answer = client.makefile("rb").readline(64)
    return 0 if answer == DONE else 1


if __name__ == "__main__":
    sys.exit(main())
