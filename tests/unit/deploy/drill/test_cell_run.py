"""
How a cell begins.
"""

from types import SimpleNamespace

import pytest

from deploy.drill import cell_run
from deploy.drill.cell_run import CellRunner


def status(*hosts, unfinished=None):
    """
    Return what `inv status` says of hosts with the versions *hosts* on record.
    """
    release = {"owner": None, "unfinished": unfinished, "paused": None} if unfinished else None
    hosts = [{"good": [{"version": one} for one in versions]} for versions in hosts]
    return {"hosts": hosts, "release": release}


@pytest.mark.parametrize(
    ("document", "can"),
    [
        (status(("v1", "v2"), ("v2", "v1", "v2")), True),
        (status(("v1", "v2"), ("v2", "v2")), False),  # it cannot serve v1 any more
        (status(("v1", "v2"), ("v2",)), False),
        (status(("v1", "v2"), ("v1", "v2"), unfinished="back-to-v1 at state.write"), False),
    ],
)
def test_a_rollback_begins_where_it_leads_somewhere(monkeypatch, document, can):
    """
    To one version, on every host; else a release comes first.
    """
    lab = SimpleNamespace(number=1, words=lambda *words: words)
    monkeypatch.setattr(cell_run, "Injector", lambda *_: None)
    monkeypatch.setattr(cell_run, "run_task", lambda *_: SimpleNamespace(document=document))
    assert CellRunner(lab, None, None, print)._can_go_back() is can
