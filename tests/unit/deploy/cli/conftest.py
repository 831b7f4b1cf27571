import signal
from pathlib import Path

import pytest

from deploy.cli.program import SlipwayProgram

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def interruptions():
    """
    Put back the handler of SIGINT: the boundary lets a second ^C end the process.
    """
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def inv(monkeypatch, capsys):
    """
    Return a function that runs the program of ./inv here: words in; code, output, errors out.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("invoke.program.pty_size", lambda: (80, 24))
    for name in ("INVOKE_FLEET", "SLIPWAY_CWD"):
        monkeypatch.delenv(name, raising=False)

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            SlipwayProgram(name="Invoke", binary="inv[oke]").run(["inv", *words])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run
