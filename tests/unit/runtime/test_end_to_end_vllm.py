"""
`python -m runtime` with engine: vllm, in a venv whose `vllm` is the fake program.

Real processes, a real tokenizer, a Unix socket.  The behaviour of a real vLLM is not tested here.
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
    A venv with the packages of this one and a `vllm` beside its python, as on a host.
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
    A directory with a tokenizer, one token for each character of printable ASCII.  The fake needs
    no more.
    """
    from tests.unit.runtime.builders import make_tokenizer

    folder = tmp_path_factory.mktemp("model")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


class VllmRuntime(Started):
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

    def recorded(self):
        return self.vllm.get("/fake/seen").json()

    def close(self):
        self.vllm.close()
        super().close()


def running(folder, venv, model, **options):
    return closing(VllmRuntime(folder, venv, model, **options))


@pytest.fixture(scope="module")
def ready(tmp_path_factory, venv, model):
    """
    A runtime shared by several tests, and its messages up to READY=1.
    """
    folder = tmp_path_factory.mktemp("ready") / "blue"
    args = 'vllm_args: ["--stream-interval=4"]\nmax_batch_requests: 7\n'
    with running(folder, venv, model, release=RELEASE + args) as runtime:
        runtime.messages_at_start = runtime.messages_until("READY=1")
        yield runtime


def test_ready_is_sent_after_an_answer_of_vllm(ready):
    """
    Loading, warming up, ready; before READY=1, vLLM answered the deep check.
    """
    assert ready.messages_at_start == [
        "STATUS=loading tiny v1.0.0",
        "STATUS=warming up tiny v1.0.0",
        "READY=1\nSTATUS=serving tiny v1.0.0",
    ]
    assert ready.http.get("/readyz").status_code == 200
    assert len(ready.recorded()["bodies"]) == 1


def test_an_answer_has_the_labels_of_the_release(ready):
    """
    Text, counts, version, slot and metrics are the same as with slipway's own engine.
    """
    answer = ready.generate("abc", max_tokens=4)
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-slipway-version"], answer.headers["x-slipway-slot"]) == (
        "v1.0.0",
        "green",
    )
    document = answer.json()
    assert (document["text"], document["tokens"], document["prompt_tokens"]) == ("defg", 4, 3)
    assert (document["finish_reason"], document["version"]) == ("length", "v1.0.0")

    own = 'slot="green",version="v1.0.0"}'
    wanted = f'slipway_http_requests_total{{code="200",route="/generate",{own} 1.0'
    assert wanted in ready.http.get("/metrics").text.splitlines()

    def are_counted():
        lines = ready.http.get("/metrics").text.splitlines()
        return f"slipway_generated_tokens_total{{{own} 12.0" in lines  # eight to warm up

    until(are_counted, "the tokens in the metrics")


def test_a_stream_and_the_openai_route_have_the_same_text(ready):
    """
    All routes use the same engine.
    """
    events = ready.generate("abc", stream=True).text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert "".join(piece["text"] for piece in pieces) == "defg"
    body = {"prompt": "abc", "max_tokens": 4, "temperature": 0}
    assert ready.http.post("/v1/completions", json=body).json()["choices"][0]["text"] == "defg"


def test_vllm_gets_its_configuration_and_no_secrets(ready):
    """
    Checked on the arguments and the environment of the process.
    """
    recorded = ready.recorded()
    argv = recorded["argv"]
    assert argv[argv.index("--max-num-seqs") + 1] == "7"
    assert "--stream-interval=4" in argv
    assert "s3cret" not in json.dumps(recorded)
    assert recorded["env"]["HF_HUB_OFFLINE"] == "1"
    assert "NOTIFY_SOCKET" not in recorded["env"]


def test_a_refusal_of_vllm_is_an_engine_error_for_the_client(ready):
    """
    All engines have the same error document.
    """
    ready.vllm.post("/fake/next", json={"status": 500})
    answer = ready.generate()
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["code"], error["retry_safe"]) == ("engine_error", True)
    assert "vLLM answered 500" in error["message"]
    refused = ready.generate(max_tokens=99)  # more than fits behind the prompt
    assert (refused.status_code, refused.json()["error"]["code"]) == (
        400,
        "context_length_exceeded",
    )


def test_a_vllm_that_hangs_does_not_feed_the_watchdog(ready):
    """
    Only vLLM's own progress feeds it.
    """
    ready.assert_that_only_the_engine_beats()


def test_sigterm_finishes_requests_in_flight(ready):
    """
    The stream runs to its last token, then vLLM stops, exit 0, and no process remains.

    The last test of `ready`: nothing runs afterwards.
    """
    pid = ready.engine_pid
    ready.vllm.post("/fake/next", json={"hold_after": 1})
    body = {"prompt": "abc", "max_tokens": 4, "stream": True}
    with ready.http.stream("POST", "/generate", json=body) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["text"] == "d"
        ready.process.send_signal(signal.SIGTERM)
        assert ready.messages_until("STOPPING=1") == ["STOPPING=1\nSTATUS=draining 1 requests"]
        assert is_alive(pid)
        ready.vllm.post("/fake/now", json={"release": True})
        rest = [line.removeprefix("data: ") for line in lines if line]
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["tokens"] == 4
    assert ready.exit_code() == EXIT_OK
    assert not is_alive(pid)
    assert not ready.socket.exists()
    assert not (ready.socket.parent / "engine").exists()


def test_a_dead_vllm_fails_its_requests_and_ends_the_runtime(tmp_path, venv, model):
    """
    Waiting clients get a retryable 502; the exit code asks systemd for a restart.
    """
    with running(tmp_path / "b", venv, model) as runtime:
        runtime.messages_until("READY=1")
        runtime.vllm.post("/fake/next", json={"die_after": 2})
        error = runtime.generate().json()["error"]
        assert (error["code"], error["retry_safe"]) == ("engine_died", False)
        assert "exit status 3" in runtime.messages_until("STOPPING=1")[-1]
        assert runtime.exit_code() == EXIT_ENGINE


def test_vllm_does_not_outlive_its_runtime(tmp_path, venv, model):
    """
    In whatever way the API process dies.
    """
    with running(tmp_path / "b", venv, model) as runtime:
        runtime.messages_until("READY=1")
        pid = runtime.engine_pid
        assert is_alive(pid)
        runtime.process.kill()
        until(lambda: not is_alive(pid), "vLLM to go")


@pytest.mark.parametrize(
    ("release", "fate", "code", "words"),
    [
        (RELEASE, "dies", EXIT_ENGINE, "vllm serve died, exit status 1"),
        (RELEASE + 'vllm_args: ["--swap-space=4"]\n', "", EXIT_CONFIG, "refused its arguments"),
        (RELEASE + "vllm_args: [--seed=1, 4]\n", "", EXIT_CONFIG, "vllm_args.1"),
        (RELEASE + 'vllm_args: ["--uds=/x"]\n', "", EXIT_CONFIG, "not an argument"),
    ],
)
def test_a_failed_start_logs_the_reason(tmp_path, venv, model, release, fate, code, words):
    """
    READY=1 is not sent.
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
    Negative control of the test above, and the common mistake of setting only the key.
    """
    (tmp_path / "bin").mkdir()
    for name in ("pyvenv.cfg", "lib", "bin/python"):
        (tmp_path / name).symlink_to((venv / name).resolve())
    with running(tmp_path / "b", tmp_path, model) as runtime:
        assert runtime.exit_code() == EXIT_CONFIG
        assert f"there is no {tmp_path / 'bin/vllm'}" in runtime.logged()
