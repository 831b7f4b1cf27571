"""
Holds the lease of every host of a release, and says when one of them is lost.
"""

import threading
from collections.abc import Iterable

from deploy.errors import DeployError
from deploy.transport.host_tool import HostTool


class LeaseKeeper:
    """
    Takes the lease of all hosts or of none, renews it in the background, gives it back.

    A host that answers no renewal for a whole time to live is given up: its connection is closed,
    so that whoever waits for it learns at once instead of at a deadline of his own.

    Args:
        ttl_s: Time to live of the lease, in seconds; the longest that a cut or frozen host can
            hold up a release.
    """

    def __init__(self, tools: Iterable[HostTool], *, owner: str, release: str, ttl_s: float):
        self._tools = list(tools)
        self._owner, self._release, self._ttl_s = owner, release, ttl_s
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._held: list[HostTool] = []
        self.lost: dict[str, DeployError] = {}

    def __enter__(self) -> "LeaseKeeper":
        """
        Take the leases in the order of the host names: two operators never each hold half.

        Raises:
            LeaseHeld: Somebody else holds one; those already taken are given back.
        """
        try:
            for tool in sorted(self._tools, key=lambda t: t.host):
                tool.release = self._release
                self.take(tool)
                self._held.append(tool)
        except BaseException:
            self._give_back()
            raise
        for tool in self._held:
            thread = threading.Thread(target=self._renew, args=(tool,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._ttl_s)
        self._give_back()

    def take(self, tool: HostTool) -> None:
        """
        Take the lease of one host, also of one that was lost for a while, if nobody else has it.

        Raises:
            LeaseHeld: Somebody else has.
            TransportError: It is still lost.
        """
        args = {"owner": self._owner, "ttl_s": self._ttl_s, "release": self._release}
        tool.fence = int(tool.call("lease.acquire", args)["fence"])

    def _renew(self, tool: HostTool) -> None:
        # Two tries fit into one time to live.
        failed: DeployError | None = None
        while not self._stop.wait(self._ttl_s / 6 if failed else self._ttl_s / 3):
            try:
                tool.call("lease.renew", {"ttl_s": self._ttl_s}, timeout_s=self._ttl_s / 2)
                failed = None
            except DeployError as error:
                if failed is not None:
                    self.lost[tool.host] = failed
                    tool.transport.close()
                    return
                failed = error

    def _give_back(self) -> None:
        for tool in self._held:
            if tool.host not in self.lost:
                try:
                    tool.call("lease.release", timeout_s=self._ttl_s)
                except DeployError as error:
                    # It expires by itself; nobody waits for it longer than its time to live.
                    self.lost[tool.host] = error
            tool.fence = None
        self._held = []
