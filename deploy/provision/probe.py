"""
Runs a verb on a host in one command: the host program runs from standard input.

The program is sent with each request (248 KiB, with bytecode).  A bare host, a host with an older
host program and one that is up to date thus run the same code, in the same way.
"""

import shlex
import zlib
from typing import Any, TypeVar

from deploy.bundle.host_program import build_fed_program
from deploy.errors import CommandFailed
from deploy.foreign_text import says
from deploy.host import layout
from deploy.host.protocol import Call, FactQuery, Facts, Request
from deploy.host.rpc import encode_request
from deploy.transport.answers import read_answer
from deploy.transport.base import Completed, Transport

DEEP_TIMEOUT_S = 300.0  # beyond the time of other facts, for 10 GiB that come from a disk
ResultT = TypeVar("ResultT")

_NO_PYTHON = 69  # exit status of a host without layout.PYTHON
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


def fed_command(verb: str) -> str:
    """
    Return the command, for `sh -c`, that runs *verb* of the program on its standard input.
    """
    # -I and -S: the standard library alone, no modules of the SSH user or of packages.
    return (
        f"[ -x {layout.PYTHON} ] || exit {_NO_PYTHON}; "
        f"exec {layout.PYTHON} -I -S -c {shlex.quote(_LOADER)} {verb}"
    )


PROBE_COMMAND = fed_command(FactQuery.VERB)


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
        stdin=fed_input(packed_program, query, Call(actor="provision")),
        check=False,
        output_max=query.ANSWER_MAX,
    )
    return parse_probe(transport.host, query, completed)


def pack_program() -> bytes:
    """
    Return the host program as `fed_input` takes it.
    """
    return zlib.compress(build_fed_program())


def fed_input(packed_program: bytes, request: Request[Any], call: Call) -> bytes:
    """
    Return the standard input of `fed_command` that carries *request*.
    """
    document = encode_request(request, call)
    return b"%d\n%b%b" % (len(packed_program), packed_program, document)


def parse_probe(host: str, request: Request[ResultT], completed: Completed) -> ResultT | None:
    """
    Return the result in the output of `fed_command` on *host*; None: the host has no Python.

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
        what = f"{request.VERB}: exit status {completed.returncode}"
        raise _unreadable(host, f"{what}; {says(host, last)}")
    return read_answer(host, request, answers[-1])


def _unreadable(host: str, why: str) -> CommandFailed:
    return CommandFailed(
        f"{host}: the host could not be asked",
        why=f"the host could not be asked: {why}",
        fix=f"repair that on the host, then: inv provision --limit {host}",
        host=host,
    )
