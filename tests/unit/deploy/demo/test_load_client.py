"""
The client process's code against a server on loopback that a test makes misbehave.
"""

import asyncio
import itertools
import ssl
from collections import Counter
from datetime import UTC, datetime

import httpx
import pytest

from deploy.certificates.authority import CERTIFICATE, create_authority
from deploy.demo.load_client import LoadConfig, drive
from deploy.demo.load_report import LoadOutcome, summarise
from tests.unit.deploy.demo.server import (
    CLOSE_AFTER,
    CUT,
    HANG,
    RESET,
    Server,
    answer,
    stream,
)


def make_config(*targets, **changes):
    return LoadConfig(
        **{
            "targets": list(targets),
            "prompts": ["one", "two"],
            "rate_rps": 400,
            "connections": 2 * len(targets),
            "streams": 0,
            "max_tokens": 4,
            "stream_max_tokens": 8,
            "stream_pause_s": 0,
            "is_chat": True,
            "timeout_s": 30,
            "deadline_s": 120,
        }
        | changes
    )


def run(script, count, tls=None, **changes):
    """
    Drive a server with *script* until it has read *count* requests; return report and server.
    """

    async def drive_server():
        async with Server(script, tls) as server:
            records, stop = [], asyncio.Event()
            config = make_config(server.url, **changes)
            driving = asyncio.create_task(drive(config, records.append, stop))
            try:
                await server.wait_for(count)
            finally:
                stop.set()  # also where they did not come: it would go on for ever
            await asyncio.wait_for(driving, 60)
            return summarise(records, config.targets), server

    return asyncio.run(drive_server())


def test_every_request_that_a_server_reads_is_in_the_report():
    """
    The report counts exactly the requests that the server has read.
    """
    report, server = run(lambda n, body: answer(), 50)

    assert report.requests == report.ok == len(server.bodies)
    assert (report.lost_requests, report.cut_streams, report.error_requests) == (0, 0, 0)
    assert report.requests_by_version == {"v1": report.requests}
    assert server.bodies[0] == {"prompt": "one", "max_tokens": 4}
    assert report.latency_s["max"] >= report.latency_s["p50"] > 0


def test_connections_are_kept_alive():
    """
    All requests share the configured number of connections.
    """
    _, server = run(lambda n, body: answer(), 50, connections=3)

    assert server.connections == 3


def test_each_reset_is_one_lost_request():
    """
    One request of seven is reset after it was sent: exactly these are lost, also on a reused
    connection.
    """
    report, server = run(lambda n, body: [RESET] if n % 7 == 3 else answer(), 60)

    resets = len([n for n in range(len(server.bodies)) if n % 7 == 3])
    assert resets >= 8
    assert report.lost_requests == resets
    assert report.ok == len(server.bodies) - resets
    assert all(loss.outcome is LoadOutcome.LOST and loss.detail for loss in report.losses)


def test_an_incomplete_answer_is_a_lost_request():
    """
    The server closes the connection in the middle of the body.
    """
    half = answer(body=b"x" * 100)[0][:-50]
    report, _ = run(lambda n, body: [half, CUT] if n == 5 else answer(), 20)

    assert report.lost_requests == 1


def test_an_idle_connection_that_the_server_closes_is_no_loss():
    """
    HTTP allows it; the next request opens a new connection.
    """
    report, server = run(lambda n, body: [*answer(), CLOSE_AFTER], 10, connections=1, rate_rps=100)

    assert report.lost_requests == 0
    assert server.connections >= 10


def test_errors_of_the_runtime_are_counted_by_version_and_status():
    """
    Users see an error answer of a runtime; it does not count as a lost request.
    """

    def script(n, body):
        return {0: answer(500, version="v2"), 1: answer(503), 2: answer(429)}.get(n % 10, answer())

    report, server = run(script, 40)

    numbers = Counter(n % 10 for n in range(len(server.bodies)))
    assert report.errors_by_version == {
        "v2": {"500": numbers[0]},
        "v1": {"503": numbers[1], "429": numbers[2]},
    }
    assert report.error_requests == numbers[0] + numbers[1] + numbers[2]
    assert report.lost_requests == 0


def test_an_error_of_the_proxy_is_a_lost_request():
    """
    503 without a version header is the proxy's: no runtime serves.
    """
    report, _ = run(lambda n, body: answer(503, version=None) if n == 2 else answer(), 20)

    assert (report.lost_requests, report.error_requests) == (1, 0)
    assert report.losses[0].status == 503


def test_no_answer_in_time_is_a_lost_request():
    """
    A request without an answer is lost after the timeout.
    """
    report, _ = run(lambda n, body: [HANG] if n == 1 else answer(), 40, timeout_s=0.2)

    assert report.lost_requests >= 1
    assert "no complete answer in 0.2s" in {loss.detail for loss in report.losses}


def test_a_dead_target_loses_its_own_requests_only():
    """
    All requests to a port without a listener are lost, and none of the other target's.
    """

    async def drive_both():
        async with Server(lambda n, body: answer()) as server:
            async with Server(lambda n, body: answer()) as stopped:
                dead = stopped.url
            records, stop = [], asyncio.Event()
            driving = asyncio.create_task(
                drive(make_config(server.url, dead), records.append, stop)
            )
            await server.wait_for(30)
            stop.set()
            await driving
            return summarise(records, [server.url, dead]), server.url, dead

    report, alive, dead = asyncio.run(drive_both())
    by_target = Counter((record.target, record.outcome) for record in report.records)

    assert by_target[alive, LoadOutcome.LOST] == 0
    assert by_target[dead, LoadOutcome.OK] == 0
    # Each target keeps its own rate: fast refusals do not lead to more requests.
    due_at = [record.due_at for record in report.records if record.target == dead]
    scheduled = (max(due_at) - min(due_at)) * 400 / 2 + 1  # of 400 requests/s on two targets
    assert by_target[dead, LoadOutcome.LOST] <= 2 * scheduled


def test_complete_streams_are_no_losses():
    """
    A stream that ends with [DONE] is successful.
    """
    report, server = run(
        lambda n, body: stream({"text": "a"}, {"text": "b"}) if body.get("stream") else answer(),
        40,
        streams=2,
    )

    assert report.streams > 0
    assert report.ok == report.requests == len(server.bodies)
    assert all(r.first_byte_s is not None for r in report.records if r.streamed)


@pytest.mark.parametrize(
    ("is_chat", "path", "asked"),
    [
        (True, "/v1/chat/completions", {"messages": [{"role": "user", "content": "one"}]}),
        (False, "/generate", {"prompt": "one"}),
    ],
)
def test_streams_are_chats_and_plain_requests_are_not(is_chat, path, asked):
    """
    Chat samples unless it is asked not to; /generate does not.
    """
    _, server = run(
        lambda n, body: stream({"text": "a"}) if body.get("stream") else answer(),
        20,
        streams=1,
        stream_pause_s=0.1,  # plain requests come in between
        prompts=["one"],
        is_chat=is_chat,
    )

    sent = list(zip(server.paths, server.bodies, strict=True))
    plain = {"prompt": "one", "max_tokens": 4}
    streamed = asked | {"max_tokens": 8, "stream": True} | ({"temperature": 0} if is_chat else {})
    assert ("/generate", plain) in sent
    assert (path, streamed) in sent
    assert all(pair in [("/generate", plain), (path, streamed)] for pair in sent)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([*stream({"text": "a"}, end=None), CUT], id="connection reset"),
        pytest.param(stream({"text": "a"}, end=""), id="ends without [DONE]"),
        pytest.param(stream({"error": {"code": "engine"}}), id="error in the data"),
        pytest.param(stream(end="event: error\ndata: {}\n\n"), id="error event"),
    ],
)
def test_each_incomplete_stream_is_one_cut_stream(pieces):
    """
    One stream of five is cut: exactly these are counted, and none as a lost request.
    """
    started = []

    def script(n, body):
        if not body.get("stream"):
            return answer()
        started.append(n)
        return pieces if len(started) % 5 == 2 else stream({"text": "a"})

    report, _ = run(script, 60, streams=1, rate_rps=50)

    cut = len([number for number in range(1, len(started) + 1) if number % 5 == 2])
    assert cut >= 2
    assert report.cut_streams == cut
    assert report.lost_requests == 0
    assert sum(kinds.get("cut", 0) for kinds in report.errors_by_version.values()) == cut


def test_a_stream_without_a_status_line_is_a_lost_request():
    """
    It never began, so it is not a cut stream.
    """
    report, _ = run(
        lambda n, body: [RESET] if body.get("stream") else answer(), 20, streams=1, rate_rps=50
    )

    assert report.cut_streams == 0
    assert report.lost_requests == report.streams > 0


def test_latency_counts_from_the_time_at_which_a_request_was_due():
    """
    The wait for a busy connection is part of the latency.
    """
    report, _ = run(
        lambda n, body: [HANG] if n == 0 else answer(), 40, connections=1, timeout_s=0.3
    )

    behind = [r for r in report.records if r.outcome is LoadOutcome.OK]
    assert max(r.latency_s for r in behind) > 0.2


class _LosesItsConnection(httpx.AsyncClient):
    """
    As httpcore 1.0 sometimes does: after a request that was ended from outside, none gets through.
    """

    is_lost = False

    async def post(self, *args, **kwargs):
        if self.is_lost:
            await asyncio.Event().wait()
        try:
            return await super().post(*args, **kwargs)
        except asyncio.CancelledError:
            self.is_lost = True
            raise


def test_a_request_that_was_ended_costs_no_later_one(monkeypatch):
    """
    The next one has a client of its own.
    """
    monkeypatch.setattr(httpx, "AsyncClient", _LosesItsConnection)
    report, _ = run(
        lambda n, body: [HANG] if n == 0 else answer(), 5, connections=1, timeout_s=1.0, rate_rps=5
    )

    assert [r.outcome for r in report.records].count(LoadOutcome.LOST) == 1


def test_the_load_stops_by_itself_at_its_deadline():
    """
    Without a call of `stop`, and with every request in the report.
    """

    async def drive_to_deadline():
        async with Server(lambda n, body: answer()) as server:
            records, stop = [], asyncio.Event()
            config = make_config(server.url, deadline_s=0.3)
            await asyncio.wait_for(drive(config, records.append, stop), 60)
            return stop.is_set(), len(records), len(server.bodies)

    is_stopped, recorded, served = asyncio.run(drive_to_deadline())

    assert is_stopped
    assert recorded == served


def test_a_request_in_flight_at_the_end_is_no_loss():
    """
    The client cancels it and counts it as unfinished, since the server did not fail.
    """
    endless = itertools.chain(stream(end="")[:1], itertools.repeat(b"5\r\n: x\n\n\r\n"))
    report, _ = run(
        lambda n, body: endless if body.get("stream") else answer(),
        5,
        streams=1,
        timeout_s=2.0,  # plain requests are answered in time, also on a busy machine
        rate_rps=20,
    )

    assert (report.unfinished, report.cut_streams, report.lost_requests) == (1, 0, 0)
    assert report.requests == report.ok + 1


@pytest.fixture
def authority(tmp_path):
    """
    The directory of an authority, and a server's context with a certificate of it.
    """
    folder, now = tmp_path / "slipway-ca", datetime.now(UTC)
    pair = create_authority(folder, "test", now).issue(["127.0.0.1"], now)
    (tmp_path / "server.pem").write_text(pair.pem.reveal())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem")
    return folder, server


def test_every_request_has_the_token_on_a_verified_connection(authority):
    """
    Plain ones and streams; the token is in no representation of the configuration.
    """
    folder, tls = authority
    token = "sk-slipway-only-here"
    report, server = run(
        lambda n, body: stream() if body.get("stream") else answer(),
        40,
        tls,
        streams=1,
        stream_pause_s=0.01,
        authority=str(folder / CERTIFICATE),
        token=token,
    )

    assert report.requests == report.ok == len(server.bodies)
    assert report.streams > 0
    assert all(f"authorization: bearer {token}" in head for head in server.heads)
    assert token not in repr(make_config("https://127.0.0.1:1", token=token))


def test_a_server_that_the_authority_did_not_sign_gets_nothing(authority, tmp_path):
    """
    Every request is lost, and no token leaves this machine.
    """
    _, tls = authority
    create_authority(tmp_path / "other", "other", datetime.now(UTC))

    async def drive_server():
        async with Server(lambda n, body: answer(), tls) as server:
            records, stop = [], asyncio.Event()
            other = str(tmp_path / "other" / CERTIFICATE)
            config = make_config(server.url, authority=other, token="sk-slipway-only-here")

            def write(record):
                records.append(record)
                if len(records) == 3:
                    stop.set()

            await asyncio.wait_for(drive(config, write, stop), 60)
            return records, server

    records, server = asyncio.run(drive_server())
    assert {record.outcome for record in records} == {LoadOutcome.LOST}
    assert "CERTIFICATE_VERIFY_FAILED" in records[0].detail
    assert server.heads == []
