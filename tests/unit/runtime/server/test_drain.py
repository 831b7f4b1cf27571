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
    """

    def __init__(self, path, logged):
        super().__init__(daemon=True)
        self.answer = b""
        self.had_waited = False
        self._path, self._logged = path, logged

    def run(self):
        body = json.dumps({"prompt": "x", "max_tokens": TOKENS, "stream": True}).encode()
        head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"x-request-id: {LONG}\r\n".encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(DEADLINE_S)
            client.connect(str(self._path))
            client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            self.answer += client.recv(1000)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: any("drain_ended" in line for line in self._logged()), "the drain")
            self.had_waited = b"[DONE]" not in self.answer
            while part := client.recv(1 << 16):
                self.answer += part


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


@pytest.mark.anyio
async def test_a_body_that_is_on_its_way_at_sigterm_is_served():
    """
    It was let in; a slow one has the time of every upload.
    """
    rest, sent = asyncio.Event(), []

    async def body():
        yield b'{"prompt": "x", '
        sent.append(1)
        await rest.wait()
        yield b'"max_tokens": 3}'

    runtime = Runtime()
    runtime.engine.will("abc")
    headers = {"content-type": "application/json"}
    asking = asyncio.create_task(runtime.http.post("/generate", content=body(), headers=headers))
    await settle()
    assert sent
    runtime.life.on(LifeEvent.TERMINATED)
    drained = asyncio.create_task(runtime.engine.holds.drain(DEADLINE_S))
    await settle()
    assert not drained.done()
    rest.set()
    assert (await asking).json()["text"] == "abc"
    await drained


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
    The time that the configuration names, although the engine has drained long before.
    """
    write_model(tmp_path / "model", **SMALL, max_position_embeddings=TOKENS + 100)
    release = f"version: {LONG}\nmodel_name: tiny\nthreads: 1\ndrain_timeout_s: {DEADLINE_S}\n"
    (tmp_path / "config.yml").write_text(release)
    monkeypatch.setenv("SLIPWAY_RELEASE_DIR", str(tmp_path))
    monkeypatch.setenv("SLIPWAY_SLOT", "green")
    monkeypatch.setenv("SLIPWAY_SOCKET", str(tmp_path / "s"))
    monkeypatch.setattr(process, "ANSWER_S", 0.0)  # nothing else gives it time
    client = StalledClient(tmp_path / "s", lambda: list(caplog.messages))

    with in_process(monkeypatch, caplog, client.start) as start:
        assert start() == (EXIT_OK, "")
    client.join(DEADLINE_S)
    assert client.had_waited
    assert b"data: [DONE]" in client.answer
