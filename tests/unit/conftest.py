"""
Settings of all property tests, and of the collector of garbage.
"""

import gc

import pytest
from hypothesis import HealthCheck, settings

# The time of an example is no property: a busy machine may take any.  Derived from the profile in
# use, so that on a CI system examples are still the same in each run.
settings.register_profile(
    "any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


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
