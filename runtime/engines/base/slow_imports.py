"""
Imports of large packages: without garbage collections, and with an error that names the cause.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.contract.errors import EngineError


@contextmanager
def without_collections() -> Iterator[None]:
    """
    Import in the block without garbage collections, a tenth of the CPU time of torch and FastAPI.

    What the block makes is exempt from later collections: modules live as long as the process.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def import_failed(error: Exception) -> EngineError:
    """
    Return the error of an engine whose modules can't be imported.
    """
    return EngineError(
        "torch and the engine's modules can't be imported",
        why=f"{type(error).__name__}: {error}",
        fix="build the release's environment again; python -c 'import torch' in it shows the cause",
    )
