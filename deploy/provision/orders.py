"""
What the parent of the worker tells it while it changes hosts: to stop with one, or to end.
"""

import contextlib
from collections.abc import Iterator

import gevent
from gevent.event import Event

from deploy.errors import LeaseLost
from deploy.provision.connector import BoundedConnector
from deploy.provision.worker_request import StopOrder

END_S = 5.0  # for the changes that have begun, once the parent has ended or wants to
_POLL_S = 0.05


class Orders:
    """
    The changes in progress, and what stops them.
    """

    def __init__(self) -> None:
        self._connectors: dict[str, BoundedConnector] = {}
        self._stopped: dict[str, LeaseLost] = {}
        self._changing = 0
        self._is_ending = False

    def watch(self, host: str, connector: BoundedConnector) -> None:
        """
        Let an order to stop reach *connector*, also one that has come already.
        """
        self._connectors[host] = connector
        if host in self._stopped:
            connector.lose(self._stopped[host])

    def stop(self, order: StopOrder) -> None:
        """
        Close the connection to a host: the command in progress fails, and no other follows.
        """
        error = LeaseLost(order.what, why=order.why, fix=order.fix, host=order.host)
        self._stopped[order.host] = error
        if (connector := self._connectors.get(order.host)) is not None:
            connector.lose(error)

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """
        Hold back the end of the worker while one change is made; once it ends, begin none.
        """
        if self._is_ending:
            Event().wait()  # for the end of this process
        self._changing += 1
        try:
            yield
        finally:
            self._changing -= 1

    def end(self) -> None:
        """
        Return when no change is in progress, END_S at most; from now on none begins.
        """
        self._is_ending = True
        with gevent.Timeout(END_S, False):
            while self._changing:
                gevent.sleep(_POLL_S)
