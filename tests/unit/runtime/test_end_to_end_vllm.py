"""
`python -m runtime` with engine: vllm, in a venv whose `vllm` is the program that plays it.

Real processes, a real tokenizer, a Unix socket; what a real vLLM does is not proven here.
"""

import contextlib
import json
import signal
import sys
from pathlib import Path

import pytest

from runtime.contract import EXIT_CONFIG, EXIT_ENGINE, EXIT_OK
from tests.unit.runtime.started import Started, closing, is_alive, until

FAKE = Path(__file__).parent / "engines/vllm/fake_vllm.py"
RELEASE = "version: v1.0.0\nmodel_name: tiny\nengine: vllm\n"


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    """
    The packages of this venv and a `vllm` beside its python, as a host's venv has them.
    """
    folder, ours = tmp_path_factory.mktemp("venv"), Path(sys.prefix)
    (folder / "bin").mkdir()
    (folder / "pyvenv.cfg").write_text((ours / "pyvenv.cfg").read_text())
    (folder / "lib").symlink_to(ours / "lib")
    (folder / "bin/python").symlink_to(Path(sys.executable).resolve())
    vllm = folder / "bin/vllm"
    vllm.write_text(f"#!{sys.executable} -S\n" + FAKE.read_text())
    vllm.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """
    A directory with a tokenizer: a token a character of printable ASCII.  The fake needs no more.
    """
    from tests.unit.runtime.builders import make_tokenizer

    folder = tmp_path_factory.mktemp("model")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


class Runtime(Started):
    """
    With a way to its vLLM.
    """

    def __init__(self, folder, venv, model, release=RELEASE, fate=""):
        folder.mkdir()
        super().__init__(
            folder,
            model=model,
            release=release,
            name="s",
            python=venv / "bin/python",
            env={"SLIPWAY_API_TOKENS": "s3cret", "FAKE_VLLM": fate},
        )
        self.vllm = self.client(folder / "engine/vllm.sock")
        for client in (self.http, self.vllm):
            client.headers["authorization"] = "Bearer s3cret"

    def generate(self, prompt="abc", **body):
        return self.http.post("/generate", json={"prompt": prompt, "max_tokens": 4} | body)

    def seen(self):
        return self.vllm.get("/fake/seen").json()

    def close(self):
        self.vllm.close()
        super().close()


def running(folder, venv, model, **options):
    return closing(Runtime(folder, venv, model, **options))


@pytest.fixture(scope="module")
def ready(tmp_path_factory, venv, model):
    """
    A runtime that several tests ask; `told` is what it said up to READY=1.
    """
    folder = tmp_path_factory.mktemp("ready") / "blue"
    args = 'vllm_args: ["--stream-interval", "4"]\nmax_batch_requests: 7\n'
    with running(folder, venv, model, release=RELEASE + args) as runtime:
        runtime.told_at_start = runtime.told_until("READY=1")
        yield runtime


def test_ready_is_said_after_an_answer_of_vllm(ready):
    """
    Loading, warming up, ready; by then vLLM has answered the deep check.
    """
    assert ready.told_at_start == [
        "STATUS=loading tiny v1.0.0",
        "STATUS=warming up tiny v1.0.0",
        "READY=1\nSTATUS=serving tiny v1.0.0",
    ]
    assert ready.http.get("/readyz").status_code == 200
    assert len(ready.seen()["bodies"]) == 1


def test_an_answer_has_the_labels_of_the_release(ready):
    """
    Text, counts, version and slot are as with slipway's own engine; so are the meters.
    """
    answer = ready.generate("abc", max_tokens=4)
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-slipway-version"], answer.headers["x-slipway-slot"]) == (
        "v1.0.0",
        "green",
    )
    found = answer.json()
    assert (found["text"], found["tokens"], found["prompt_tokens"]) == ("defg", 4, 3)
    assert (found["finish_reason"], found["version"]) == ("length", "v1.0.0")

    own = 'slot="green",version="v1.0.0"}'
    wanted = f'slipway_http_requests_total{{code="200",route="/generate",{own} 1.0'
    assert wanted in ready.http.get("/metrics").text.splitlines()

    def are_counted():
        lines = ready.http.get("/metrics").text.splitlines()
        return f"slipway_generated_tokens_total{{{own} 12.0" in lines  # eight to warm up

    until(are_counted, "the tokens in the metrics")


def test_a_stream_and_the_openai_route_say_the_same(ready):
    """
    Whatever route, the engine behind it is the same.
    """
    events = ready.generate("abc", stream=True).text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert "".join(piece["text"] for piece in pieces) == "defg"
    body = {"prompt": "abc", "max_tokens": 4, "temperature": 0}
    assert ready.http.post("/v1/completions", json=body).json()["choices"][0]["text"] == "defg"


def test_vllm_is_told_what_the_configuration_says_and_no_secrets(ready):
    """
    Arguments and environment as it got them.
    """
    seen = ready.seen()
    argv = seen["argv"]
    assert argv[argv.index("--max-num-seqs") + 1] == "7"
    assert argv[argv.index("--stream-interval") + 1] == "4"
    assert "s3cret" not in json.dumps(seen)
    assert seen["env"]["HF_HUB_OFFLINE"] == "1"
    assert "NOTIFY_SOCKET" not in seen["env"]


def test_what_vllm_refuses_is_an_engine_error_for_the_client(ready):
    """
    One error document for all engines.
    """
    ready.vllm.post("/fake/next", json={"status": 500})
    answer = ready.generate()
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["code"], error["retry_safe"]) == ("engine_error", True)
    assert "vLLM answered 500" in error["message"]
    refused = ready.generate(max_tokens=99)  # more than fits behind the prompt
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_tokens")


def test_a_vllm_that_hangs_is_not_covered_for(ready):
    """
    The watchdog is fed by what vLLM does, and by nothing else.
    """
    ready.assert_that_only_the_engine_beats()


def test_sigterm_finishes_what_is_in_flight(ready):
    """
    The stream goes to its last token, then vLLM stops, exit 0, and nothing is left behind.

    The last test of `ready`: nothing runs afterwards.
    """
    pid = ready.engine_pid
    ready.vllm.post("/fake/next", json={"hold_after": 1})
    body = {"prompt": "abc", "max_tokens": 4, "stream": True}
    with ready.http.stream("POST", "/generate", json=body) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["text"] == "d"
        ready.process.send_signal(signal.SIGTERM)
        assert ready.told_until("STOPPING=1") == ["STOPPING=1\nSTATUS=draining 1 requests"]
        assert is_alive(pid)
        ready.vllm.post("/fake/now", json={"release": True})
        rest = [line.removeprefix("data: ") for line in lines if line]
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["tokens"] == 4
    assert ready.exit_code() == EXIT_OK
    assert not is_alive(pid)
    assert not ready.socket.exists()
    assert not (ready.socket.parent / "engine").exists()


def test_a_dead_vllm_is_told_to_clients_and_ends_the_runtime(tmp_path, venv, model):
    """
    Who waits gets a 500 that may be retried; the exit code asks systemd for a restart.
    """
    with running(tmp_path / "b", venv, model) as runtime:
        runtime.told_until("READY=1")
        runtime.vllm.post("/fake/next", json={"die_after": 2})
        error = runtime.generate().json()["error"]
        assert (error["code"], error["retry_safe"]) == ("engine_died", True)
        assert "exit status 3" in runtime.told_until("STOPPING=1")[-1]
        assert runtime.exit_code() == EXIT_ENGINE


def test_vllm_does_not_outlive_its_runtime(tmp_path, venv, model):
    """
    However the API process dies.
    """
    with running(tmp_path / "b", venv, model) as runtime:
        runtime.told_until("READY=1")
        pid = runtime.engine_pid
        assert is_alive(pid)
        runtime.process.kill()
        until(lambda: not is_alive(pid), "vLLM to go")


@pytest.mark.parametrize(
    ("release", "fate", "code", "words"),
    [
        (RELEASE, "dies", EXIT_ENGINE, "vllm serve died, exit status 1"),
        (RELEASE + 'vllm_args: ["--speed", "high"]\n', "", EXIT_CONFIG, "refused its arguments"),
        (RELEASE + "vllm_args: [--max-num-seqs, 4]\n", "", EXIT_CONFIG, "vllm_args.1"),
        (RELEASE + 'vllm_args: ["--uds=/x"]\n', "", EXIT_CONFIG, "the runtime decides it"),
    ],
)
def test_a_start_that_fails_says_why(tmp_path, venv, model, release, fate, code, words):
    """
    And READY=1 was not said.
    """
    with running(tmp_path / "b", venv, model, release=release, fate=fate) as runtime:
        assert runtime.exit_code() == code
        assert words in runtime.logged()
        runtime.manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while message := runtime.manager.recv(4096):
                assert not message.startswith(b"READY=1")


def test_a_venv_without_vllm_exits_78(tmp_path, venv, model):
    """
    Negative control of the above, and what most users see who only set the key.
    """
    (tmp_path / "bin").mkdir()
    for name in ("pyvenv.cfg", "lib", "bin/python"):
        (tmp_path / name).symlink_to((venv / name).resolve())
    with running(tmp_path / "b", tmp_path, model) as runtime:
        assert runtime.exit_code() == EXIT_CONFIG
        assert f"there is no {tmp_path / 'bin/vllm'}" in runtime.logged()
