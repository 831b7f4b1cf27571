"""
SIGTERM: what is on its way to a client still arrives.
"""

import asyncio
import json
import os
import signal
import socket
import threading

import pytest

from runtime.contract import EXIT_OK
from runtime.server import process
from runtime.server.lifecycle import LifeEvent
from tests.unit.runtime.broken_models import SMALL
from tests.unit.runtime.builders import write_model
from tests.unit.runtime.in_process import in_process
from tests.unit.runtime.server.test_grammars import HeldChecker, settle
from tests.unit.runtime.serving import Runtime, assert_is_error
from tests.unit.runtime.started import DEADLINE_S, until

TOKENS = 600  # of an answer
LONG = "x" * 120  # a name that each event repeats: together more than all buffers hold


class StalledClient(threading.Thread):
    """
    Asks for a stream, reads its head, stops reading until the engine has drained, reads the rest.

    Before, it begins to send another request, whose body never comes.

    Attributes:
        half: The answer to that.
    """

    def __init__(self, path, logged):
        super().__init__(daemon=True)
        self.answer = self.half = b""
        self.had_waited = False
        self._path, self._logged = path, logged

    def run(self):
        body = json.dumps({"prompt": "x", "max_tokens": TOKENS, "stream": True}).encode()
        head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"x-request-id: {LONG}\r\n".encode()
        with self._connected() as half, self._connected() as client:
            half.sendall(head + b"content-length: 99\r\n\r\n{")
            client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            self.answer += client.recv(1000)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: any("drain_ended" in line for line in self._logged()), "the drain")
            self.had_waited = b"[DONE]" not in self.answer
            self.half = half.recv(1 << 16)
            while part := client.recv(1 << 16):
                self.answer += part

    def _connected(self):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(DEADLINE_S)
        client.connect(str(self._path))
        return client


ADMITTED = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    "completions": ("/v1/completions", {"prompt": "x"}),
}


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ADMITTED)
async def test_a_request_that_was_admitted_before_sigterm_is_served(name, stream):
    """
    Its grammar is being checked when the signal comes; the drain waits for it.
    """
    route, body = ADMITTED[name]
    body = body | {"structured_outputs": {"regex": "a"}, "stream": stream}
    checker = HeldChecker()
    runtime = Runtime(checker=checker)
    asking = asyncio.create_task(runtime.http.post(route, json=body))
    await settle()
    assert runtime.serving.generator.promised == 1
    runtime.life.on(LifeEvent.TERMINATED)
    drained = asyncio.create_task(runtime.engine.holds.drain(DEADLINE_S))
    refused = await runtime.http.post(route, json=body)
    assert_is_error(refused, 503, "not_ready", retry_safe=True)
    assert not drained.done()

    runtime.engine.will("abc")
    checker.go_on()
    response = await asking
    assert response.status_code == 200, response.text
    assert '"error"' not in response.text
    await drained


class SlowBody:
    """
    A body whose second half comes when it may.
    """

    def __init__(self):
        self.rest, self.is_half_sent = asyncio.Event(), False

    async def parts(self):
        yield b'{"prompt": "x", '
        self.is_half_sent = True
        await self.rest.wait()
        yield b'"max_tokens": 3}'


async def begin_to_send(runtime, body):
    """
    Return the task of a request whose first half has come, and of the drain since then.
    """
    headers = {"content-type": "application/json"}
    post = runtime.http.post("/generate", content=body.parts(), headers=headers)
    asking = asyncio.create_task(post)
    await settle()
    assert body.is_half_sent
    runtime.life.on(LifeEvent.TERMINATED)
    drained = asyncio.create_task(runtime.engine.holds.drain(DEADLINE_S))
    await settle()
    assert not drained.done()
    return asking, drained


@pytest.mark.anyio
async def test_a_body_that_is_on_its_way_at_sigterm_is_served():
    """
    It was let in before.
    """
    runtime, body = Runtime(), SlowBody()
    runtime.engine.will("abc")
    asking, drained = await begin_to_send(runtime, body)
    runtime.serving.uploads.end_in(DEADLINE_S)
    body.rest.set()
    assert (await asking).json()["text"] == "abc"
    await drained


@pytest.mark.anyio
async def test_a_slow_body_holds_the_drain_no_longer_than_its_limit():
    """
    Far less than an upload may take otherwise; the other slot can answer the request.
    """
    runtime, body = Runtime(), SlowBody()
    asking, drained = await begin_to_send(runtime, body)
    runtime.serving.uploads.end_in(0.0)
    assert_is_error(await asking, 503, "shutting_down", retry_safe=True)
    await drained
    assert runtime.serving.uploads.held == 0


@pytest.mark.anyio
async def test_a_request_that_comes_to_the_engine_after_the_drain_is_refused():
    """
    The drain timeout passed while its grammar was checked.
    """
    checker = HeldChecker()
    runtime = Runtime(checker=checker)
    body = {"prompt": "x", "structured_outputs": {"regex": "a"}}
    asking = asyncio.create_task(runtime.http.post("/v1/completions", json=body))
    await settle()
    assert runtime.serving.generator.promised == 1
    for event in (LifeEvent.TERMINATED, LifeEvent.DRAINED):
        runtime.life.on(event)
    checker.go_on()
    assert_is_error(await asking, 503, "not_ready", retry_safe=True)
    assert runtime.serving.generator.promised == 0


def test_a_stalled_reader_has_the_drain_time(tmp_path, monkeypatch, caplog):
    """
    The time that the configuration names, although the engine has drained long before.  A body
    that does not come holds the drain no longer than its own limit.
    """
    write_model(tmp_path / "model", **SMALL, max_position_embeddings=TOKENS + 100)
    release = f"version: {LONG}\nmodel_name: tiny\nthreads: 1\ndrain_timeout_s: {DEADLINE_S}\n"
    (tmp_path / "config.yml").write_text(release)
    monkeypatch.setenv("SLIPWAY_RELEASE_DIR", str(tmp_path))
    monkeypatch.setenv("SLIPWAY_SLOT", "green")
    monkeypatch.setenv("SLIPWAY_SOCKET", str(tmp_path / "s"))
    monkeypatch.setattr(process, "ANSWER_S", 0.0)  # nothing else gives it time
    monkeypatch.setattr(process, "DRAIN_S", 0.0)
    client = StalledClient(tmp_path / "s", lambda: list(caplog.messages))

    with in_process(monkeypatch, caplog, client.start) as start:
        assert start() == (EXIT_OK, "")
    client.join(DEADLINE_S)
    assert client.had_waited
    assert b"data: [DONE]" in client.answer
    assert b" 503 " in client.half
    assert b"shutting_down" in client.half
