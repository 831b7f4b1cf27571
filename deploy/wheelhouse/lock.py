"""
The lock of a Python environment: its text, its digest and its wheels.  Pure.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CachedWheel:
    """
    Attributes:
        file: Its name, with version and Python tags.
        size: In bytes.
        path: On this machine.
        unpacked: Bytes that its files take on a disk, bytecode of all modules included.
    """

    file: str
    sha256: str
    size: int
    path: Path
    unpacked: int


@dataclass(frozen=True, slots=True)
class Lock:
    """
    Attributes:
        digest: SHA-256 of `text`; the name of the environment on every host.
        text: Requirements with hashes, sorted, without comments, options or addresses.
        python: Python version of the environment, such as "3.11".
        wheels: Exactly the wheels of `text`, sorted by file name; empty where not fetched.
        is_fetched: The wheels are on this machine.
    """

    digest: str
    text: str
    python: str
    wheels: tuple[CachedWheel, ...]
    is_fetched: bool = True


def lock_text(*sources: str) -> str:
    """
    Return the requirements of *sources* as one canonical text.

    The same pins give the same bytes: layout and comments of the files do not matter.

    Raises:
        ValueError: A requirement has no hash, or two sources pin the same project.
    """
    found: dict[str, str] = {}
    for source in sources:
        for name, line in _requirements(source):
            if name in found:
                raise ValueError(f"{name} is pinned twice")
            found[name] = line
    return "".join(f"{found[name]}\n" for name in sorted(found))


def digest_of(text: str) -> str:
    """
    Return the lock digest of *text*.
    """
    return hashlib.sha256(text.encode()).hexdigest()


def hashes_in(text: str) -> frozenset[str]:
    """
    Return every hash that the lock *text* allows.
    """
    return frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", text))


def pins_in(text: str) -> int:
    """
    Return how many packages the lock *text* pins; a line that names its Python is none.
    """
    return sum(not line.startswith("#") for line in text.splitlines())


def _requirements(source: str) -> list[tuple[str, str]]:
    joined = source.replace("\\\n", " ")
    found = []
    for raw in joined.splitlines():
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if not line:
            continue
        pin, *options = line.split()
        hashes = sorted(option for option in options if option.startswith("--hash=sha256:"))
        if not re.fullmatch(r"[A-Za-z0-9._-]+==[^\s;]+", pin) or len(hashes) != len(options):
            raise ValueError(f"should be NAME==VERSION with --hash=sha256:..., got {line!r}")
        if not hashes:
            raise ValueError(f"{pin} has no hash")
        name = re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower()
        found.append((name, " ".join([pin, *hashes])))
    return found
