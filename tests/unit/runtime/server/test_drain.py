"""
SIGTERM: what is on its way to a client still arrives.
"""

import json
import os
import signal
import socket
import threading

from runtime.contract import EXIT_OK
from runtime.server import process
from tests.unit.runtime.broken_models import SMALL
from tests.unit.runtime.builders import write_model
from tests.unit.runtime.in_process import in_process
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
