import gc

import pytest

from runtime.engines.base.slow_imports import without_collections


@pytest.fixture(autouse=True)
def collections():
    """
    Leave the collector as it was.
    """
    yield
    gc.enable()
    gc.unfreeze()


def test_there_are_no_collections_in_the_block():
    """
    Its objects are exempt from later ones.
    """
    frozen = gc.get_freeze_count()
    with without_collections():
        assert not gc.isenabled()
        made = [[] for _ in range(100)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)


def test_an_error_leaves_the_collector_as_it_was():
    """
    Enabled if it was, and not otherwise.
    """
    with pytest.raises(ZeroDivisionError), without_collections():
        raise ZeroDivisionError
    assert gc.isenabled()
    gc.disable()
    with without_collections():
        pass
    assert not gc.isenabled()
