import json

import pytest

from deploy.demo.load_report import Outcome, Record, summarise

A, B = "http://a", "http://b"


def make_record(
    at=0.0, target=A, version="v1", outcome=Outcome.OK, status=200, latency_s=0.01, **more
):
    given = {"streamed": False, "first_byte_s": None, "detail": None} | more
    return Record(
        at, target, outcome=outcome, status=status, version=version, latency_s=latency_s, **given
    )


def test_a_record_is_read_back_as_it_was_written():
    """
    The file between the two processes loses nothing.
    """
    record = make_record(1.5, outcome=Outcome.CUT_STREAM, streamed=True, detail="x\ny")
    line = record.to_line()

    assert line.count("\n") == 1
    assert Record.from_line(line) == record
    assert type(Record.from_line(line).outcome) is Outcome


def test_the_timeline_has_each_second_of_each_target_by_version():
    """
    A canary's share is read off for each host.
    """
    records = [make_record(10 + n / 10, version="v2" if n == 9 else "v1") for n in range(10)]
    records += [make_record(11.5, target=B, outcome=Outcome.LOST, status=None, version=None)]

    first, second = summarise(records, [A, B]).timeline

    assert (first.at, first.target, first.answered, first.lost) == (10, A, {"v1": 9, "v2": 1}, 0)
    assert first.share("v2") == pytest.approx(0.1)
    assert (second.target, second.answered, second.lost) == (B, {}, 1)
    assert second.share("v2") == 0


def test_exposure_says_how_long_and_how_widely_a_version_reached_users():
    """
    From its first answer to its last, with its share of all answers in that time.
    """
    records = [
        make_record(n / 10, version="v3" if 20 <= n < 40 and n % 4 == 0 else "v2")
        for n in range(60)
    ]
    records.append(make_record(3.0, version="v3", outcome=Outcome.ERROR_STATUS, status=500))

    found = summarise(records, [A]).exposure("v3")

    assert found is not None
    assert (found.requests, found.errors) == (6, 1)
    assert found.seconds == pytest.approx(1.61)
    assert found.share == pytest.approx(6 / 18)
    assert 0.25 <= found.peak_share <= 0.4
    assert summarise(records, [A]).exposure("v9") is None


def test_a_report_is_one_json_document():
    """
    What a script gets; versions that no header named are "none".
    """
    records = [
        make_record(0.0, version=None),
        make_record(0.5, outcome=Outcome.LOST, status=None, version=None, detail="ConnectError"),
    ]
    found = json.loads(json.dumps(summarise(records, [A]).as_json()))

    assert (found["requests"], found["lost_requests"], found["cut_streams"]) == (2, 1, 0)
    assert found["requests_by_version"] == {"none": 1}
    assert found["losses"][0]["detail"] == "ConnectError"
    assert found["timeline"][0]["at"].startswith("1970-01-01T00:00:00")


def test_no_requests_is_a_report_too():
    """
    Asked before the first answer, it is empty and not wrong.
    """
    report = summarise([], [A])

    assert (report.requests, report.latency_s, report.timeline) == (0, {}, ())
    assert report.started_at is None


def test_quantiles_are_of_plain_requests_that_ended_well():
    """
    Neither a stream nor a timeout moves the latency.
    """
    records = [make_record(n, latency_s=n / 100) for n in range(1, 101)]
    records += [make_record(200, latency_s=99, streamed=True)]
    records += [make_record(201, latency_s=99, outcome=Outcome.LOST, status=None)]

    assert summarise(records, [A]).latency_s == {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
