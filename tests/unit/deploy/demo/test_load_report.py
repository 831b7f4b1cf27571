import json

import pytest

from deploy.demo.load_report import LoadOutcome, RequestRecord, summarise

A, B = "http://a", "http://b"


def make_record(
    at=0.0, target=A, version="v1", outcome=LoadOutcome.OK, status=200, latency_s=0.01, **more
):
    optional = {"streamed": False, "first_byte_s": None, "detail": None} | more
    return RequestRecord(
        at, target, outcome=outcome, status=status, version=version, latency_s=latency_s, **optional
    )


def test_a_record_is_read_back_as_it_was_written():
    """
    One record is one line, also with a line break in its detail.
    """
    record = make_record(1.5, outcome=LoadOutcome.CUT_STREAM, streamed=True, detail="x\ny")
    line = record.to_line()

    assert line.count("\n") == 1
    assert RequestRecord.from_line(line) == record
    assert type(RequestRecord.from_line(line).outcome) is LoadOutcome


def test_the_timeline_has_each_second_of_each_target_by_version():
    """
    Each row has the shares of one host, so the canary's share can be read for each host.
    """
    records = [make_record(10 + n / 10, version="v2" if n == 9 else "v1") for n in range(10)]
    records += [make_record(11.5, target=B, outcome=LoadOutcome.LOST, status=None, version=None)]

    first, second = summarise(records, [A, B]).timeline

    assert (first.at, first.target, first.answered, first.lost) == (10, A, {"v1": 9, "v2": 1}, 0)
    assert first.share("v2") == pytest.approx(0.1)
    assert (second.target, second.answered, second.lost) == (B, {}, 1)
    assert second.share("v2") == 0


def test_exposure_has_the_duration_and_the_share_of_a_version():
    """
    From its first answer to its last, with its share of all answers in that time.
    """
    records = [
        make_record(n / 10, version="v3" if 20 <= n < 40 and n % 4 == 0 else "v2")
        for n in range(60)
    ]
    records.append(make_record(3.0, version="v3", outcome=LoadOutcome.ERROR_STATUS, status=500))

    exposure = summarise(records, [A]).exposure("v3")

    assert exposure is not None
    assert (exposure.requests, exposure.errors) == (6, 1)
    assert exposure.seconds == pytest.approx(1.61)
    assert exposure.share == pytest.approx(6 / 18)
    assert 0.25 <= exposure.peak_share <= 0.4
    assert summarise(records, [A]).exposure("v9") is None


def test_a_report_is_one_json_document():
    """
    Answers without a version header count as version "none".
    """
    records = [
        make_record(0.0, version=None),
        make_record(
            0.5, outcome=LoadOutcome.LOST, status=None, version=None, detail="ConnectError"
        ),
    ]
    document = json.loads(json.dumps(summarise(records, [A]).as_json()))

    assert (document["requests"], document["lost_requests"], document["cut_streams"]) == (2, 1, 0)
    assert document["requests_by_version"] == {"none": 1}
    assert document["losses"][0]["detail"] == "ConnectError"
    assert document["timeline"][0]["at"].startswith("1970-01-01T00:00:00")


def test_a_report_without_requests_is_empty():
    """
    As before the first answer.
    """
    report = summarise([], [A])

    assert (report.requests, report.latency_s, report.timeline) == (0, {}, ())
    assert report.started_at is None


def test_quantiles_are_those_of_successful_plain_requests():
    """
    Streams and timeouts do not count.
    """
    records = [make_record(n, latency_s=n / 100) for n in range(1, 101)]
    records += [make_record(200, latency_s=99, streamed=True)]
    records += [make_record(201, latency_s=99, outcome=LoadOutcome.LOST, status=None)]

    assert summarise(records, [A]).latency_s == {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
