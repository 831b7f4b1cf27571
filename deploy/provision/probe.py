"""
Reads the facts of a host in one command: the host program runs from standard input.

The program is sent with each request (82 KiB, with bytecode).  A bare host, a host with an older
host program and one that is up to date are thus read by the same code, in the same way.
"""

import shlex
import zlib

from deploy.bundle.host_program import build_fed_program
from deploy.errors import CommandFailed
from deploy.foreign_text import says
from deploy.host.protocol import Call, FactQuery, Facts
from deploy.host.rpc import encode_request
from deploy.transport.answers import read_answer
from deploy.transport.base import Completed, Transport

DEEP_TIMEOUT_S = 300.0  # beyond the time of other facts, for 10 GiB that come from a disk
_NO_PYTHON = 69  # exit status of a host without python3
_ANSWER = '{"ok": '

# Runs the program from memory; nothing is written to the disk of the host.  A process this short
# has no use for garbage collection.
_LOADER = """\
import gc, os, sys, zlib
gc.disable()
size = int(sys.stdin.buffer.readline())
program = memoryview(zlib.decompress(sys.stdin.buffer.read(size)))
fd = os.memfd_create("slipway-host")
while program:
    program = program[os.write(fd, program):]
sys.path.insert(0, "/proc/self/fd/%d" % fd)
from deploy.host.__main__ import main
sys.exit(main())
"""

# For `sh -c`.  -I and -S: the standard library alone, no modules of the SSH user or of packages.
PROBE_COMMAND = (
    f"command -v python3 >/dev/null || exit {_NO_PYTHON}; "
    f"exec python3 -I -S -c {shlex.quote(_LOADER)} {FactQuery.VERB}"
)


def read_facts(
    transport: Transport, *, sudo: bool, packed_program: bytes, query: FactQuery, timeout_s: float
) -> Facts | None:
    """
    Return the facts of the host of *transport*; None: it has no Python.

    Raises:
        DeployError: The host program reports an error, or there is no valid answer.
        TransportError: The host did not answer within *timeout_s*; a deep query takes longer.
    """
    completed = transport.run(
        [*(["sudo", "-n"] if sudo else []), "sh", "-c", PROBE_COMMAND],
        timeout_s=timeout_s + (DEEP_TIMEOUT_S if query.deep else 0.0),
        stdin=probe_input(packed_program, query),
        check=False,
        output_max=query.ANSWER_MAX,
    )
    return parse_probe(transport.host, query, completed)


def pack_program() -> bytes:
    """
    Return the host program as `probe_input` takes it.
    """
    return zlib.compress(build_fed_program())


def probe_input(packed_program: bytes, query: FactQuery) -> bytes:
    """
    Return the standard input of `PROBE_COMMAND` that asks *query*.
    """
    request = encode_request(query, Call(actor="provision"))
    return b"%d\n%b%b" % (len(packed_program), packed_program, request)


def parse_probe(host: str, query: FactQuery, completed: Completed) -> Facts | None:
    """
    Return the facts in the output of `PROBE_COMMAND` on *host*; None: the host has no Python.

    Lines that the login shell of the host prints around the answer are ignored.

    Raises:
        DeployError: As for `read_facts`.
    """
    if completed.returncode == _NO_PYTHON:
        return None
    answers = [line for line in completed.stdout.split("\n") if line.startswith(_ANSWER)]
    if completed.returncode != 0 or not answers:
        output = completed.stderr.strip() or completed.stdout.strip()
        last = " / ".join(line.strip() for line in output.split("\n")[-4:])
        raise _unreadable(host, f"exit status {completed.returncode}; {says(host, last)}")
    return read_answer(host, query, answers[-1])


def _unreadable(host: str, why: str) -> CommandFailed:
    return CommandFailed(
        f"{host}: the facts of the host could not be read",
        why=f"the facts of the host could not be read: {why}",
        fix=f"repair that on the host, then: inv provision --limit {host}",
        host=host,
    )
