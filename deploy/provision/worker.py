"""
The process in which pyinfra runs: a job as JSON on standard input, events as JSON lines on output.

Apart from its parent, because gevent replaces half of the standard library for the whole process,
and because a parent can end a child that hangs.
"""

from gevent import monkey

monkey.patch_all()

import dataclasses  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402

from deploy.provision.engine import run  # noqa: E402
from deploy.provision.report import ProvisionEvent  # noqa: E402
from deploy.provision.worker_request import Job  # noqa: E402

EXIT_ORPHAN = 3  # the parent is gone; nothing more is changed


def main() -> int:
    """
    Do the job on standard input; 0 however the hosts ended.
    """
    # Operation names and outputs go to the parent as events, and nowhere else.
    logging.getLogger("pyinfra").addHandler(logging.NullHandler())
    logging.getLogger("pyinfra").propagate = False
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    source = FileObject(sys.stdin.fileno(), "rb", closefd=False)
    job = Job.model_validate_json(source.readline())
    gevent.spawn(_end_with, source)
    run(job, lambda event: _say("event", _plain(event)), _count)
    return 0


def _end_with(source: Any) -> None:
    source.read()  # to its end: the parent closed it or died
    os._exit(EXIT_ORPHAN)


def _plain(event: ProvisionEvent) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(event).items() if value is not None}


def _count(host: str, commands: int) -> None:
    _say("commands", {"host": host, "commands": commands})


def _say(kind: str, document: dict[str, Any]) -> None:
    print(json.dumps({kind: document}), flush=True)  # noqa: T201 - the protocol with the parent


if __name__ == "__main__":
    sys.exit(main())
