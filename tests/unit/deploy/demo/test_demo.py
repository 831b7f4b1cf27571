import json
from datetime import UTC, datetime

from deploy.demo.demo import BAD, GARBLED, DemoReport, Step
from deploy.demo.load_report import Outcome, Record, summarise
from deploy.release.events import ReleaseEvent

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TARGET = "http://127.0.0.1:1"


def make_record(due_s=1.0, **changes):
    fields = {
        "due_at": BEGAN.timestamp() + due_s,
        "target": TARGET,
        "streamed": False,
        "outcome": Outcome.OK,
        "status": 200,
        "version": "v1.0.0",
        "latency_s": 0.1,
        "first_byte_s": None,
        "detail": None,
    }
    return Record(**fields | changes)


def make_report(records, *, found="promoted"):
    load = summarise(records, [TARGET])
    events = (
        ReleaseEvent(BEGAN, "traffic.shifted", "v1.1.0 10 %", "n1", {"weights": {"v1.1.0": 10}}),
    )
    return DemoReport(
        steps=(Step("release", 0.0, 1.0, "promoted", found, "fine"),),
        events=events,
        load=load,
        refused={BAD: load.exposure(BAD), GARBLED: load.exposure(GARBLED)},
        began=BEGAN,
        took_s=12.0,
    )


def test_the_demo_is_good_only_without_a_loss():
    """
    One lost request, one cut stream, no request at all, or one wrong ending fails it.
    """
    assert make_report([make_record()]).is_good
    assert not make_report([]).is_good
    assert not make_report([make_record(outcome=Outcome.LOST, status=None, version=None)]).is_good
    assert not make_report([make_record(outcome=Outcome.CUT_STREAM)]).is_good
    assert not make_report([make_record()], found="reverted").is_good


def test_the_document_has_the_promised_keys():
    """
    Scripts rely on outcome, requests, lost_requests, cut_streams and timeline.
    """
    document = make_report([make_record()]).as_json()
    assert {"outcome", "requests", "lost_requests", "cut_streams", "timeline"} <= set(document)
    json.dumps(document)


def test_it_says_how_far_a_refused_release_reached():
    """
    From its first answer to its last, its share of all answers then, and what users saw of it.
    """
    records = [make_record(float(s)) for s in range(10)]
    records += [
        make_record(2.0, version=BAD),
        make_record(4.0, version=BAD, outcome=Outcome.ERROR_STATUS, status=500),
    ]
    report = make_report(records)

    bad, garbled = report.as_json()["refused"]

    assert (bad["reached_users_s"], bad["requests"], bad["errors"]) == (2.1, 2, 1)
    assert bad["share_pct"] == 40.0
    assert garbled["requests"] == 0
    assert "v1.2.0: reached users for 2.1 s" in report.text()
    assert "v1.3.0: never reached a user" in report.text()


def test_the_timeline_shows_each_change_of_the_mixture_once():
    """
    A row when a version comes or goes for five seconds, beside what the release did.
    """
    records = [make_record(float(s)) for s in range(40)]
    records += [make_record(s + 0.5, version="v1.1.0") for s in (20, 23, 26)]
    text = make_report(records).text()
    rows = [line for line in text.splitlines() if " traffic  " in line]
    assert len(rows) == 3, text
    assert "v1.1.0" not in rows[0]
    assert rows[1].split()[0] == "20.0s", "not before it answered anybody"
    assert "v1.0.0 71 %  v1.1.0 29 %" in rows[1]
    assert "v1.1.0" not in rows[2]
    assert "traffic.shifted" in text
