"""
`python -m runtime check` answers what the start would: the same exit code, the same words.
"""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from runtime import __main__ as program
from runtime.contract import EXIT_CONFIG, EXIT_OK, GOLDEN_FILE
from tests.unit.runtime.broken_models import KINDS, change_json, write_broken
from tests.unit.runtime.builders import write_model
from tests.unit.runtime.in_process import error_in, in_process
from tests.unit.runtime.started import DEADLINE_S, ROOT

RELEASE = "version: v1.0.0\nmodel_name: tiny\nthreads: 1\ndrain_timeout_s: 0\n"
# Started as processes, too: all of them with SLIPWAY_CHECK_LONG=1.
STARTED = ["whole", *KINDS] if os.environ.get("SLIPWAY_CHECK_LONG") else ["fp8_weights"]


@pytest.fixture
def release(tmp_path, monkeypatch):
    """
    Write a release with the model of a kind; the environment names it, as a unit's does.
    """

    def write(name):
        write_broken(tmp_path / "model", name)
        (tmp_path / "config.yml").write_text(RELEASE)
        return tmp_path

    monkeypatch.setenv("SLIPWAY_RELEASE_DIR", str(tmp_path))
    monkeypatch.setenv("SLIPWAY_SLOT", "green")
    monkeypatch.setenv("SLIPWAY_SOCKET", str(tmp_path / "s"))
    monkeypatch.delenv("SLIPWAY_HOST_CONFIG", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    return write


@pytest.fixture
def start(monkeypatch, caplog):
    """
    Start the runtime in this process; return its exit code and its error.

    Once ready, it gets SIGTERM.
    """
    with in_process(monkeypatch, caplog, lambda: os.kill(os.getpid(), signal.SIGTERM)) as start:
        yield start


@pytest.mark.parametrize("name", ["whole", *KINDS])
def test_check_answers_what_the_start_would(release, start, capsys, name):
    """
    For each kind of broken directory; the whole one is the negative control.
    """
    release(name)
    code = program.main(["check"])
    said = capsys.readouterr().err.strip()

    assert (code, said) == start()
    assert code == (EXIT_OK if name == "whole" else EXIT_CONFIG)
    assert (said == "") == (name == "whole")
    assert "Traceback" not in said


ASK = {"role": "user", "content": "hi"}
# The first golden prompt and the changes of the model's config: cannot be asked.
UNASKABLE = {
    "as_long_as_the_context": ({"prompt": "a" * 20}, {"max_position_embeddings": 20}),
    "far_too_long": ({"prompt": "a" * 30_000}, {"max_position_embeddings": 100}),
    "no_chat_template": ({"messages": [ASK]}, {}),
    "none_and_a_context_of_one_token": (None, {"max_position_embeddings": 1}),
    "half_a_surrogate": ({"prompt": "\ud800"}, {}),
    "no_token_for_any_character": ({"prompt": "日本"}, {}),
}


def write_golden(folder, entry):
    if entry is not None:
        (folder / GOLDEN_FILE).write_text(json.dumps(entry | {"expected": "?"}) + "\n")


@pytest.mark.parametrize("name", UNASKABLE)
def test_check_refuses_a_model_that_the_warm_up_cannot_ask(release, start, capsys, name):
    golden, changes = UNASKABLE[name]
    folder = release("whole")
    change_json(folder / "model" / "config.json", **changes)
    write_golden(folder, golden)
    code = program.main(["check"])
    said = capsys.readouterr().err.strip()

    assert (code, said) == start()
    assert code == EXIT_CONFIG
    assert ("golden" in said) == (golden is not None)


@pytest.mark.parametrize(
    ("golden", "changes"),
    [
        ({"prompt": "a" * 19}, {"max_position_embeddings": 20}),
        ({"prompt": "hi"}, {"eos_token_id": list(range(95))}),
    ],
    ids=["room for one token", "every token ends an answer"],
)
def test_a_model_that_can_be_asked_for_one_token_starts(release, start, capsys, golden, changes):
    """
    Also one whose answer to the first golden prompt is to say nothing.
    """
    folder = release("whole")
    change_json(folder / "model" / "config.json", **changes)
    write_golden(folder, golden)

    assert program.main(["check"]) == EXIT_OK
    assert start() == (EXIT_OK, "")


@pytest.mark.parametrize("name", STARTED)
def test_check_answers_what_a_start_as_the_unit_does_would(release, name):
    """
    In processes of their own.
    """
    folder = release(name)

    def run(*args, env=None):
        argv = [sys.executable, "-m", "runtime", *args]
        return subprocess.Popen(
            argv,
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    with run("check") as checking:
        said = checking.communicate(timeout=DEADLINE_S)[1].strip()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        run(env={"NOTIFY_SOCKET": str(folder / "notify")}) as starting,
    ):
        manager.bind(str(folder / "notify"))
        manager.settimeout(DEADLINE_S)
        while name == "whole" and not manager.recv(4096).startswith(b"READY=1"):
            pass
        if name == "whole":
            starting.send_signal(signal.SIGTERM)
        logged = starting.communicate(timeout=DEADLINE_S)[1]
    assert checking.returncode == starting.returncode
    entries = logged.replace("\n  ", "\0  ").splitlines()
    shown = "\n".join(line.removeprefix("  ") for line in said.splitlines())
    assert error_in([entry.replace("\0", "\n") for entry in entries]).split() == shown.split()


def test_a_token_without_a_row_is_a_warning(tmp_path, capsys, monkeypatch, release, start, caplog):
    """
    Said once, by name, by both; requests that have it are refused, others are served.
    """
    release("whole")
    write_model(tmp_path / "model", vocab_size=94, hidden_size=16)
    assert program.main(["check"]) == EXIT_OK
    said = capsys.readouterr().out
    assert "the embedding has 94 rows, and none for '~' (94) of tokenizer.json" in said
    assert start() == (EXIT_OK, "")
    warned = [text for text in map(str, caplog.messages) if "tokens_without_rows" in text]
    assert len(warned) == 1
    assert "'~' (94)" in warned[0]
