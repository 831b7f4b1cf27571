"""
The engine process: `python -m runtime.engines --fd N --parent PID`.
"""

import argparse
import contextlib
import logging
import os
import socket
from functools import partial

from runtime.engines.base.logs import configure_logging
from runtime.engines.base.pdeathsig import serve_parent
from runtime.engines.base.protocol import Load
from runtime.engines.base.slow_imports import import_failed, without_collections
from runtime.engines.paged.step import LoadedModel
from runtime.engines.paged.worker import Engine, EngineSocket


def open_model(
    load: Load, first_pid: int | None = None, import_error: Exception | None = None
) -> LoadedModel:
    """
    Read the model of *load* with torch, on one device or on several GPUs.

    Args:
        first_pid: Of the API process, whose memory counts too; None for this one.
        import_error: What `import_torch` returned.

    Raises:
        RuntimeFault: It can't be served here.
    """
    if import_error is not None:
        raise import_failed(import_error) from import_error
    if load.options.gpus > 1:
        with without_collections():
            from runtime.engines.tensor_parallel.sharded import open_sharded

        return open_sharded(load, first_pid)
    with without_collections():
        from runtime.engines.paged.load_engine import load_engine

    return load_engine(load, first_pid)


def import_torch() -> Exception | None:
    """
    Begin with the slow import while the API process has its own, ahead of the first `Load`.

    Returns:
        Its error, to be reported when a model is opened: a second import of a package that failed
        half-way raises another one.
    """
    try:
        with without_collections():
            import runtime.engines.paged.load_engine  # noqa: F401
    except Exception as error:
        return error
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="runtime.engines")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args()
    configure_logging()
    if not serve_parent(args.parent):
        return 0
    error = import_torch()  # only now that this process ends with its parent
    # Either error means that the API process has ended, and its clients with it.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        opener = partial(open_model, first_pid=args.parent, import_error=error)
        Engine(EngineSocket(socket.socket(fileno=args.fd)), opener).run()
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # What torch has loaded takes 0.3 s of the processor to be taken apart: the kernel and the GPU's
    # driver free all of it with the process.
    os._exit(status)
