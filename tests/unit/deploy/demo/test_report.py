import json
from datetime import UTC, datetime

from deploy.demo.demo import BAD, GARBLED
from deploy.demo.load_report import LoadOutcome, RequestRecord, summarise
from deploy.demo.report import DemoReport, DemoStep
from deploy.release.events import ReleaseEvent

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TARGET = "http://127.0.0.1:1"


def make_record(due_s=1.0, **changes):
    fields = {
        "due_at": BEGAN.timestamp() + due_s,
        "target": TARGET,
        "streamed": False,
        "outcome": LoadOutcome.OK,
        "status": 200,
        "version": "v1.0.0",
        "latency_s": 0.1,
        "first_byte_s": None,
        "detail": None,
    }
    return RequestRecord(**fields | changes)


def make_report(records, *, actual="promoted"):
    load = summarise(records, [TARGET])
    events = (
        ReleaseEvent(BEGAN, "traffic.shifted", "v1.1.0 10 %", "n1", {"weights": {"v1.1.0": 10}}),
    )
    return DemoReport(
        steps=(DemoStep("release", 0.0, 1.0, "promoted", actual, "fine"),),
        events=events,
        load=load,
        refused={BAD: load.exposure(BAD), GARBLED: load.exposure(GARBLED)},
        began=BEGAN,
        took_s=12.0,
    )


def test_the_demo_is_good_only_without_a_loss():
    """
    It fails with one lost request, one cut stream, no request at all, or one unexpected result.
    """
    assert make_report([make_record()]).is_good
    assert not make_report([]).is_good
    assert not make_report(
        [make_record(outcome=LoadOutcome.LOST, status=None, version=None)]
    ).is_good
    assert not make_report([make_record(outcome=LoadOutcome.CUT_STREAM)]).is_good
    assert not make_report([make_record()], actual="reverted").is_good


def test_the_document_has_the_promised_keys():
    """
    Scripts rely on outcome, requests, lost_requests, cut_streams, steps and timeline.
    """
    document = json.loads(json.dumps(make_report([make_record()]).as_json()))

    keys = {"outcome", "requests", "lost_requests", "cut_streams", "steps", "timeline"}
    assert keys <= set(document)
    assert document["steps"] == [
        {
            "step": "release",
            "at_s": 0.0,
            "took_s": 1.0,
            "wanted": "promoted",
            "outcome": "promoted",
            "detail": "fine",
        }
    ]


def test_the_report_has_the_exposure_of_each_refused_release():
    """
    The time from its first answer to its last, its share of all answers then, and its errors.
    """
    records = [make_record(float(s)) for s in range(10)]
    records += [
        make_record(2.0, version=BAD),
        make_record(4.0, version=BAD, outcome=LoadOutcome.ERROR_STATUS, status=500),
    ]
    report = make_report(records)

    bad, garbled = report.as_json()["refused"]

    assert (bad["reached_users_s"], bad["requests"], bad["errors"]) == (2.1, 2, 1)
    assert bad["share_pct"] == 40.0
    assert garbled["requests"] == 0
    assert "v1.2.0: reached users for 2.1 s" in "\n".join(report.lines())
    assert "v1.3.0: never reached a user" in "\n".join(report.lines())


def test_the_timeline_shows_each_change_of_the_versions_once():
    """
    A row when a version appears or is absent for five seconds, beside the release's events.
    """
    records = [make_record(float(s)) for s in range(40)]
    records += [make_record(s + 0.5, version="v1.1.0") for s in (20, 23, 26)]
    text = "\n".join(make_report(records).lines())
    rows = [line for line in text.splitlines() if " traffic  " in line]
    assert len(rows) == 3, text
    assert "v1.1.0" not in rows[0]
    assert rows[1].split()[0] == "20.0s", "not before its first answer"
    assert "v1.0.0 71 %  v1.1.0 29 %" in rows[1]
    assert "v1.1.0" not in rows[2]
    assert "traffic.shifted" in text
