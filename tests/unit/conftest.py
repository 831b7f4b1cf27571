import gc

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """
    Keep the garbage collector off 15,000 tests, which stay until the end.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
