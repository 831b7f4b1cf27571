"""
The process in which pyinfra runs: a request as JSON on standard input, events as JSON lines on
standard output.

Each later line of its input stops the changes of one host; the end of its input stops all.

A process of its own: gevent replaces half of the standard library for the whole process, and a
parent can kill a child that hangs.
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
from deploy.provision.orders import Orders  # noqa: E402
from deploy.provision.report import ProvisionEvent  # noqa: E402
from deploy.provision.worker_request import StopOrder, WorkerRequest  # noqa: E402
from deploy.transport.sudo import keep_password  # noqa: E402

EXIT_ORPHAN = 3  # the parent has ended; nothing more is changed


def main() -> int:
    """
    Run the request on standard input; return 0 however the hosts ended.
    """
    # Names and outputs of operations go to the parent as events only.
    logging.getLogger("pyinfra").addHandler(logging.NullHandler())
    logging.getLogger("pyinfra").propagate = False
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    source = FileObject(sys.stdin.fileno(), "rb", closefd=False)
    request = WorkerRequest.model_validate_json(source.readline())
    if request.sudo_password is not None:
        keep_password(request.sudo_password)
    orders = Orders()
    gevent.spawn(_obey, source, orders)
    run(request, lambda event: _print("event", _plain(event)), _count, orders)
    return 0


def _obey(source: Any, orders: Orders) -> None:
    for line in source:
        orders.stop(StopOrder.model_validate_json(line))
    # The parent closed it or has died.  What has begun may end, so that no lease is given back
    # under it.
    orders.end()
    os._exit(EXIT_ORPHAN)


def _plain(event: ProvisionEvent) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(event).items() if value is not None}


def _count(host: str, commands: int) -> None:
    _print("commands", {"host": host, "commands": commands})


def _print(kind: str, document: dict[str, Any]) -> None:
    print(json.dumps({kind: document}), flush=True)  # noqa: T201 - the protocol with the parent


if __name__ == "__main__":
    sys.exit(main())
