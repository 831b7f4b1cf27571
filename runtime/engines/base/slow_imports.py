"""
Imports of large packages without garbage collections.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
