"""
`python -m runtime` as systemd starts it: real processes, a real model, a Unix socket.
"""

import contextlib
import json
import os
import signal
import socket
import stat
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from runtime.contract import EXIT_CONFIG, EXIT_ENGINE, EXIT_OK
from tests.unit.runtime.builders import write_model
from tests.unit.runtime.started import DEADLINE_S, Started, closing, is_alive, until

RELEASE = "version: v1.0.0\nmodel_name: tiny\n"
LONG = 2000  # tokens: a second or so, in which a test can look around
LOST = "Z"  # the character that the model has no finite numbers for


class SlipwayRuntime(Started):
    def __init__(self, folder, model, release=RELEASE, golden="", env=None):
        folder.mkdir()
        (folder / "golden.jsonl").write_text(golden)
        # One that an earlier runtime left behind.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
            stale.bind(str(folder / "runtime.sock"))
        name = "runtime.sock"
        super().__init__(folder, model=model, release=release, name=name, env=env)

    def generate(self, prompt="ask", **body):
        return self.http.post("/generate", json={"prompt": prompt, "max_tokens": 8} | body)


@contextlib.contextmanager
def sent(runtime, body):
    """
    Yield a connection with one request in progress.
    """
    content = json.dumps(body).encode()
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(runtime.socket))
        client.settimeout(DEADLINE_S)
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(content) + content)
        for _ in range(3):  # by then the request, which came before, is with the engine
            assert runtime.http.get("/livez").status_code == 200
        yield client


def running(folder, model, **options):
    return closing(SlipwayRuntime(folder, model, **options))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return write_model(folder, nan_text=LOST, max_position_embeddings=LONG + 100)


@pytest.fixture(scope="module")
def ready(tmp_path_factory, model):
    """
    A runtime shared by several tests, and its messages up to READY=1.
    """
    with running(tmp_path_factory.mktemp("ready") / "blue", model) as runtime:
        runtime.messages_at_start = runtime.messages_until("READY=1")
        yield runtime


def test_ready_is_sent_after_a_real_answer(ready):
    """
    Loading, warming up, ready, in this order; before READY=1, HTTP answered a deep check.
    """
    assert ready.messages_at_start == [
        "STATUS=loading tiny v1.0.0",
        "STATUS=warming up tiny v1.0.0",
        "READY=1\nSTATUS=serving tiny v1.0.0",
    ]
    assert ready.http.get("/readyz").status_code == 200
    lines = ready.http.get("/metrics").text.splitlines()
    labels = 'code="200",route="/healthz",slot="green",version="v1.0.0"'
    assert f"slipway_http_requests_total{{{labels}}} 1.0" in lines
    assert stat.S_IMODE(ready.socket.stat().st_mode) == 0o660


def test_a_stream_and_a_plain_answer_have_the_same_text(ready):
    """
    Eight tokens, requested both ways.
    """
    whole = ready.generate().json()
    assert (whole["tokens"], whole["finish_reason"], whole["version"]) == (8, "length", "v1.0.0")

    events = ready.generate(stream=True).text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]


def test_one_broken_request_of_many_fails_alone(ready):
    """
    Sent together, repeatedly: the broken requests get a 500, and no other answer changes.
    """
    prompts = [f"prompt {number}" for number in range(4)]
    wanted = {prompt: ready.generate(prompt, max_tokens=20).json()["text"] for prompt in prompts}
    asked = [*prompts, f"lost {LOST}", *prompts, LOST] * 4

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda prompt: ready.generate(prompt, max_tokens=20), asked))

    for prompt, answer in zip(asked, answers, strict=True):
        if LOST in prompt:
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "engine_nonfinite"
        else:
            assert answer.json()["text"] == wanted[prompt]


def test_a_client_that_disconnects_is_counted_as_499(ready):
    """
    The runtime continues to serve.
    """

    def is_counted():
        text = ready.http.get("/metrics").text
        return 'slipway_http_requests_total{code="499",route="/generate"' in text

    os.kill(ready.engine_pid, signal.SIGSTOP)  # it shall not be done before we are gone
    try:
        with sent(ready, {"prompt": "x", "stream": True}):
            pass
        until(is_counted, "the 499 in the metrics")
    finally:
        os.kill(ready.engine_pid, signal.SIGCONT)
    assert ready.generate().status_code == 200


def test_the_engine_feeds_the_watchdog_and_nothing_else_does(ready):
    """
    An idle engine sends heartbeats; nothing sends them for a stopped one, although HTTP answers.
    """
    ready.assert_that_only_the_engine_beats()


def test_sigterm_finishes_requests_in_flight(ready):
    """
    Not ready at once, no new requests, the stream complete to its last token, exit 0.

    The last test of `ready`: nothing runs afterwards.
    """
    engine_pid = ready.engine_pid
    transport = httpx.HTTPTransport(uds=str(ready.socket))
    other = httpx.Client(transport=transport, base_url="http://runtime", timeout=DEADLINE_S)
    body = {"prompt": "x", "max_tokens": LONG, "stream": True}
    with other, ready.http.stream("POST", "/generate", json=body) as stream:
        lines = stream.iter_lines()
        first = next(lines)
        os.kill(engine_pid, signal.SIGSTOP)  # holds the stream open while we look around
        ready.process.send_signal(signal.SIGTERM)
        os.kill(engine_pid, signal.SIGTERM)  # systemd tells every process of the unit
        until(lambda: other.get("/readyz").status_code == 503, "/readyz to be 503")

        assert other.get("/readyz").json()["phase"] == "draining"
        assert ready.next_message() == "STOPPING=1\nSTATUS=draining 1 requests"
        refused = other.post("/generate", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["retry_safe"]) == (503, True)
        assert ready.process.poll() is None

        os.kill(engine_pid, signal.SIGCONT)
        rest = [line.removeprefix("data: ") for line in lines if line]

    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["tokens"] == LONG
    assert first.startswith("data: ")
    assert ready.exit_code() == EXIT_OK
    assert not is_alive(engine_pid)
    assert not ready.socket.exists()


def test_a_dead_engine_fails_its_requests_and_ends_the_runtime(tmp_path, model):
    """
    Waiting clients get a retryable 502; the exit code asks systemd for a restart.
    """
    with running(tmp_path / "blue", model) as runtime:
        runtime.messages_until("READY=1")
        engine_pid = runtime.engine_pid
        os.kill(engine_pid, signal.SIGSTOP)
        with sent(runtime, {"prompt": "x"}) as client:
            os.kill(engine_pid, signal.SIGKILL)
            with client.makefile("rb") as answer:
                whole = answer.read().decode()  # to its end: the runtime hangs up

        assert whole.startswith("HTTP/1.1 502 ")
        error = json.loads(whole.partition("\r\n\r\n")[2])["error"]
        assert (error["code"], error["retry_safe"]) == ("engine_died", False)
        assert "killed by signal 9" in runtime.messages_until("STOPPING=1")[-1]
        assert runtime.exit_code() == EXIT_ENGINE


def test_an_engine_does_not_outlive_its_runtime(tmp_path, model):
    """
    The engine ends with the API process, in whatever way and however early that dies.
    """
    with running(tmp_path / "blue", model) as runtime:
        runtime.messages_until("STATUS=loading")
        engine_pid = runtime.engine_pid
        assert is_alive(engine_pid)
        runtime.process.kill()
        until(lambda: not is_alive(engine_pid), "the engine to die")


def test_requests_that_outlast_the_drain_are_answered(tmp_path, model):
    """
    After drain_timeout_s each waiting client gets an error, and the exit code is still 0.
    """
    with running(tmp_path / "blue", model, release=RELEASE + "drain_timeout_s: 0.2\n") as runtime:
        runtime.messages_until("READY=1")
        os.kill(runtime.engine_pid, signal.SIGSTOP)
        with sent(runtime, {"prompt": "x"}) as client:
            runtime.process.send_signal(signal.SIGTERM)
            with client.makefile("rb") as answer:
                whole = answer.read().decode()
        assert whole.startswith("HTTP/1.1 503 ")
        assert '"code": "shutting_down"' in whole
        assert runtime.exit_code() == EXIT_OK


def test_a_model_that_does_not_answer_is_never_ready(tmp_path, model):
    """
    A failed warm-up ends the runtime without READY=1.
    """
    golden = json.dumps({"prompt": LOST, "max_tokens": 1, "expected": ""})
    with running(tmp_path / "blue", model, golden=golden) as runtime:
        messages = runtime.messages_until("STOPPING=1")
        assert not any("READY=1" in message for message in messages)
        assert runtime.exit_code() == EXIT_ENGINE
        runtime.log.seek(0)
        assert "engine_nonfinite" in runtime.log.read()


@pytest.mark.parametrize(
    ("release", "model_changes", "words"),
    [
        (RELEASE + "theads: 2\n", {}, "theads: unknown key"),
        (RELEASE, {"intermediate_size": 40}, "gate_up_proj"),
    ],
)
def test_a_configuration_error_exits_78(tmp_path, release, model_changes, words):
    """
    The log names a wrong key, and a directory that is not a model.
    """
    model = write_model(tmp_path / "weights")
    document = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(document | model_changes))
    with running(tmp_path / "blue", model, release=release) as runtime:
        assert runtime.exit_code() == EXIT_CONFIG
        runtime.log.seek(0)
        assert words in runtime.log.read()
