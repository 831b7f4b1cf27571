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


class Runtime(Started):
    def __init__(self, folder, model, release=RELEASE, golden=""):
        folder.mkdir()
        (folder / "golden.jsonl").write_text(golden)
        # One that an earlier runtime left behind.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
            stale.bind(str(folder / "runtime.sock"))
        super().__init__(folder, model=model, release=release, name="runtime.sock")

    def generate(self, prompt="ask", **body):
        return self.http.post("/generate", json={"prompt": prompt, "max_tokens": 8} | body)


@contextlib.contextmanager
def sent(runtime, body):
    """
    A connection on which a request has been sent, and is being worked on.
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
    return closing(Runtime(folder, model, **options))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return write_model(folder, nan_text=LOST, max_position_embeddings=LONG + 100)


@pytest.fixture(scope="module")
def ready(tmp_path_factory, model):
    """
    A runtime that several tests ask; `told` is what it said up to READY=1.
    """
    with running(tmp_path_factory.mktemp("ready") / "blue", model) as runtime:
        runtime.told_at_start = runtime.told_until("READY=1")
        yield runtime


def test_ready_is_said_after_a_real_answer(ready):
    """
    Loading, warming up, ready, in this order; by then one deep check was answered over HTTP.
    """
    assert ready.told_at_start == [
        "STATUS=loading tiny v1.0.0",
        "STATUS=warming up tiny v1.0.0",
        "READY=1\nSTATUS=serving tiny v1.0.0",
    ]
    assert ready.http.get("/readyz").status_code == 200
    lines = ready.http.get("/metrics").text.splitlines()
    labels = 'code="200",route="/healthz",slot="green",version="v1.0.0"'
    assert f"slipway_http_requests_total{{{labels}}} 1.0" in lines
    assert stat.S_IMODE(ready.socket.stat().st_mode) == 0o660


def test_a_stream_says_what_the_whole_says(ready):
    """
    Eight tokens, one text, two ways.
    """
    whole = ready.generate().json()
    assert (whole["tokens"], whole["finish_reason"], whole["version"]) == (8, "length", "v1.0.0")

    events = ready.generate(stream=True).text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]


def test_one_broken_request_of_many_fails_alone(ready):
    """
    Sent together, over and over: the broken ones are 500, and no other answer changes.
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


def test_a_client_that_hangs_up_is_counted_and_forgotten(ready):
    """
    A stream that nobody reads any more ends in 499, and the runtime serves on.
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
    An idle engine keeps beating; a stopped one is not covered for, though HTTP answers.
    """
    ready.assert_that_only_the_engine_beats()


def test_sigterm_finishes_what_is_in_flight(ready):
    """
    Not ready at once, no new requests, the stream whole to its last token, exit 0.

    The last test of `ready`: nothing runs afterwards.
    """
    engine_pid = ready.engine_pid
    other = httpx.Client(
        transport=httpx.HTTPTransport(uds=str(ready.socket)), base_url="http://runtime"
    )
    body = {"prompt": "x", "max_tokens": LONG, "stream": True}
    with other, ready.http.stream("POST", "/generate", json=body) as stream:
        lines = stream.iter_lines()
        first = next(lines)
        os.kill(engine_pid, signal.SIGSTOP)  # holds the stream open while we look around
        ready.process.send_signal(signal.SIGTERM)
        os.kill(engine_pid, signal.SIGTERM)  # systemd tells every process of the unit
        until(lambda: other.get("/readyz").status_code == 503, "/readyz to be 503")

        assert other.get("/readyz").json()["phase"] == "draining"
        assert ready.told() == "STOPPING=1\nSTATUS=draining 1 requests"
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


def test_a_dead_engine_is_told_to_clients_and_ends_the_runtime(tmp_path, model):
    """
    Who waits gets a 500 that may be retried; the exit code asks systemd for a restart.
    """
    with running(tmp_path / "blue", model) as runtime:
        runtime.told_until("READY=1")
        engine_pid = runtime.engine_pid
        os.kill(engine_pid, signal.SIGSTOP)
        with sent(runtime, {"prompt": "x"}) as client:
            os.kill(engine_pid, signal.SIGKILL)
            with client.makefile("rb") as answer:
                whole = answer.read().decode()  # to its end: the runtime hangs up

        assert whole.startswith("HTTP/1.1 500 ")
        error = json.loads(whole.partition("\r\n\r\n")[2])["error"]
        assert (error["code"], error["retry_safe"]) == ("engine_died", True)
        assert "killed by signal 9" in runtime.told_until("STOPPING=1")[-1]
        assert runtime.exit_code() == EXIT_ENGINE


def test_an_engine_does_not_outlive_its_runtime(tmp_path, model):
    """
    However the API process dies, and however early, the engine goes with it.
    """
    with running(tmp_path / "blue", model) as runtime:
        runtime.told_until("STATUS=loading")
        engine_pid = runtime.engine_pid
        assert is_alive(engine_pid)
        runtime.process.kill()
        until(lambda: not is_alive(engine_pid), "the engine to die")


def test_a_drain_that_takes_too_long_is_cut_and_answered(tmp_path, model):
    """
    After drain_timeout_s whoever waits is told so, and the exit code is still 0.
    """
    with running(tmp_path / "blue", model, release=RELEASE + "drain_timeout_s: 0.2\n") as runtime:
        runtime.told_until("READY=1")
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
    A warm-up that fails ends the runtime, and READY=1 was not said.
    """
    golden = json.dumps({"prompt": LOST, "max_tokens": 1, "expected": ""})
    with running(tmp_path / "blue", model, golden=golden) as runtime:
        told = runtime.told_until("STOPPING=1")
        assert not any("READY=1" in message for message in told)
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
def test_what_a_restart_can_not_mend_exits_78(tmp_path, release, model_changes, words):
    """
    A wrong key and a model that is none are named in the log.
    """
    model = write_model(tmp_path / "weights")
    document = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(document | model_changes))
    with running(tmp_path / "blue", model, release=release) as runtime:
        assert runtime.exit_code() == EXIT_CONFIG
        runtime.log.seek(0)
        assert words in runtime.log.read()
