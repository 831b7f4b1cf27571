"""
Reads an allowed_signers file, which is sent to hosts.

Only lines that are public keys are sent, and those without comments.  So a fleet file cannot name
a private file of the operator and have its content appear on hosts.
"""

import base64
import binascii
import re

from deploy.transport.known_hosts import key_type

# ssh-keygen(1), ALLOWED SIGNERS: principals, options, type, key; a comment may follow.
_OPTION = r'(?:cert-authority|namespaces="[^"]*"|valid-(?:after|before)="?[0-9]{8,14}Z?"?)'
_LINE = re.compile(
    rf'(?P<principals>"[^"]+"|[^\s"]+)\s+(?:(?P<options>{_OPTION}(?:,{_OPTION})*)\s+)?'
    r"(?P<kind>[a-z0-9@.-]+)\s+(?P<key>[A-Za-z0-9+/]+=*)(?:\s.*)?",
    re.IGNORECASE,
)
TEXT_MAX = 1 << 20  # characters
_LINE_MAX = 16 << 10


def parse_signers(text: str) -> str:
    """
    Return the signers in *text*, one line each; empty if there is none.

    Raises:
        ValueError: A line is neither a comment nor a signer; has its number and not its text.
    """
    if len(text) > TEXT_MAX:
        raise ValueError(f"the file has more than {TEXT_MAX} characters")
    signers = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        signer = _signer(line)
        if signer is None:
            raise ValueError(f"line {number} is not a signer")
        signers.append(f"{signer}\n")
    return "".join(signers)


def _signer(line: str) -> str | None:
    match = _LINE.fullmatch(line) if len(line) <= _LINE_MAX else None
    if match is None:
        return None
    try:
        key = base64.b64decode(match["key"], validate=True)
    except (binascii.Error, ValueError):
        return None
    if key_type(key) != match["kind"]:
        return None
    parts = match["principals"], match["options"], match["kind"], match["key"]
    return " ".join(part for part in parts if part)
