"""
When hosts were last seen is kept on this machine, in a private file that may be damaged.
"""

import json
import stat
from datetime import UTC, datetime

import pytest

from deploy.errors import TransportError
from deploy.wiring import fleet_status
from tests.builders import make_settled

LOST = TransportError("n2", why="-", fix="-", host="n2")
FIRST, LATER = datetime(2026, 11, 26, 5, tzinfo=UTC), datetime(2026, 11, 26, 6, tzinfo=UTC)


@pytest.fixture
def path(monkeypatch, tmp_path):
    monkeypatch.setattr(fleet_status, "ROOT", tmp_path)
    return tmp_path / ".slipway" / "status" / "lab.json"


def test_a_host_keeps_the_time_of_when_it_was_last_read(path):
    both = {"n1": make_settled("n1"), "n2": make_settled("n2")}
    assert set(fleet_status.last_seen("lab", both, FIRST).values()) == {"2026-11-26T05:00:00Z"}

    times = fleet_status.last_seen("lab", both | {"n2": LOST}, LATER)

    assert times == {"n1": "2026-11-26T06:00:00Z", "n2": "2026-11-26T05:00:00Z"}
    assert json.loads(path.read_text()) == times
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["", "[]", '{"n2": 7, "n3": "a\\u001b[2J"}', "[" * 100_000])
def test_a_damaged_record_counts_as_none(path, text):
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text(text)
    assert fleet_status.last_seen("lab", {"n2": LOST}, FIRST) == {}


def test_a_record_that_cannot_be_kept_stops_no_status(path):
    """
    A link could lead the file elsewhere, so it is not written through.
    """
    path.parent.parent.mkdir(mode=0o700)
    target = path.parent.parent / "elsewhere"
    target.mkdir()
    path.parent.symlink_to(target)
    seen = {"n1": make_settled("n1")}
    assert fleet_status.last_seen("lab", seen, FIRST) == {"n1": "2026-11-26T05:00:00Z"}
    assert list(target.iterdir()) == []
