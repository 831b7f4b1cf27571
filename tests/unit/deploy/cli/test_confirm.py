import io

import pytest

from deploy.cli.confirm import confirm
from deploy.errors import UsageError


class Terminal(io.StringIO):
    def isatty(self):
        return True


def ask(monkeypatch, answer):
    stderr = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr", stderr)
    return stderr


@pytest.mark.parametrize("answer", ["y\n", "YES\n", " y \n"])
def test_yes_goes_on(monkeypatch, answer):
    ask(monkeypatch, answer)
    confirm("go?", yes=False)


@pytest.mark.parametrize(
    "answer",
    [pytest.param("n\n", id="n"), pytest.param("\n", id="enter"), pytest.param("", id="^D")],
)
def test_anything_else_is_not_confirmed(monkeypatch, answer):
    """
    The end of the input (^D) is an answer like n, with its exit code.
    """
    ask(monkeypatch, answer)
    with pytest.raises(UsageError, match="not confirmed") as caught:
        confirm("go?", yes=False)
    assert caught.value.exit_code == 19


def test_the_choice_is_shown_as_it_is(monkeypatch):
    stderr = ask(monkeypatch, "y\n")
    confirm("go?", yes=False)
    assert stderr.getvalue() == "go? [y/N] "


def test_nobody_is_asked_without_a_terminal(monkeypatch):
    for stdin in (io.StringIO("y\n"), None):
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(UsageError, match="nobody is there to ask"):
            confirm("go?", yes=False)


def test_yes_asks_nobody(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    confirm("go?", yes=True)
