"""
The process of one more GPU: `python -m runtime.engines.tensor_parallel.tp_worker --rank R …`.

It launches the steps of rank 0, in that order, and samples the same tokens, which it drops.
It exits when rank 0 closes the other end of the socket.
"""

import argparse
import contextlib
import gc
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable

from runtime.contract.errors import RuntimeFault
from runtime.engines.base.logs import configure_logging
from runtime.engines.base.pdeathsig import serve_parent
from runtime.engines.base.protocol import Load, decode_to_engine
from runtime.engines.paged.step import LoadedModel, Running
from runtime.engines.tensor_parallel.pipe import Pipe, decode_step, encode

log = logging.getLogger("runtime.engine")

AHEAD_STEPS = 4  # launched and not collected; rank 0 is never so far ahead


class TPWorker:
    """
    Executes what rank 0 broadcasts.
    """

    def __init__(self, pipe: Pipe, opened: LoadedModel) -> None:
        self._pipe, self._opened = pipe, opened
        self._ahead: deque[Running] = deque()
        self._deferred: deque[Running] = deque()  # of these, those that await masks
        self._finish: Callable[[], None] | None = None

    def run(self) -> None:
        """
        Serve until rank 0 closes the socket.
        """
        while (message := self._pipe.receive()) is not None:
            match message:
                case ("step", *parts):
                    step = decode_step(*parts)
                    running = self._opened.runner.launch(step)
                    self._ahead.append(running)
                    if running.awaits_masks:
                        self._deferred.append(running)
                    self._collect(AHEAD_STEPS)
                case ("mask", masks):
                    # Rank 0 masks the steps that await it in the order of their launch.
                    self._deferred.popleft().mask(masks)
                case ("prepare", model_dir):
                    threading.Thread(target=self._prepare, args=(model_dir,), daemon=True).start()
                case ("drop",):
                    self._finish = None
                case ("commit",):
                    assert self._finish is not None, "nothing is prepared"
                    self._collect(0)
                    self._finish()
                    self._finish = None

    def _collect(self, left: int) -> None:
        while len(self._ahead) > left:
            self._ahead.popleft().collect()

    def _prepare(self, model_dir: str) -> None:
        try:
            self._finish = self._opened.prepare(model_dir)
        except Exception as error:
            self._pipe.send(_fault(error))
        else:
            self._pipe.send(encode("done"))


def run_rank(pipe: Pipe, rank: int, store: str) -> None:
    """
    Load this rank's shard of the model that rank 0 names, and compute with it.
    """
    message = pipe.receive()
    if message is None:
        return
    load = decode_to_engine(message[1])
    assert isinstance(load, Load), load
    # Imported here: the slow import starts once this process is bound to its parent.
    from runtime.engines.tensor_parallel.sharded import open_rank

    def barrier() -> None:
        pipe.send(encode("done"))
        if pipe.receive() is None:
            raise BrokenPipeError

    try:
        opened = open_rank(load, rank, store, barrier, os.getppid())
    except RuntimeFault as error:
        pipe.send(_fault(error))
        pipe.receive()  # until rank 0 has read it, and closes
        return
    gc.collect()
    gc.freeze()  # garbage collections skip what is loaded now
    pipe.send(encode("done"))
    TPWorker(pipe, opened).run()


def _fault(error: Exception) -> bytes:
    if isinstance(error, RuntimeFault):
        return encode("fault", error.what, error.why, error.fix)
    return encode("fault", f"{type(error).__name__}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="runtime.engines.tensor_parallel.tp_worker")
    for name in ("rank", "fd", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--store", required=True)
    args = parser.parse_args()
    configure_logging()
    if not serve_parent(args.parent):
        return 0
    pipe = Pipe(socket.socket(fileno=args.fd))
    try:
        run_rank(pipe, args.rank, args.store)
    except (BrokenPipeError, ConnectionResetError):
        return 0  # rank 0 has ended
    except Exception as error:
        log.exception("engine.tp_worker_failed rank=%d", args.rank)
        with contextlib.suppress(OSError):  # rank 0 may have ended, and be the reason
            pipe.send(encode("died", f"{type(error).__name__}: {error}"))
        return 1
    return 0


if __name__ == "__main__":
    # Not SystemExit: NCCL's threads may wait for ranks that have ended.
    os._exit(main())
