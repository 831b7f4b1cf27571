import pytest

from deploy.errors import LabError
from deploy.lab.commands import attempt, follow, run


def test_a_failed_command_is_an_error_with_its_last_line():
    """
    What has the command, why its last line of error output, fix the caller's remedy.
    """
    with pytest.raises(LabError) as raised:
        run(["sh", "-c", "echo out; echo first >&2; echo last >&2; exit 3"], fix="do this")

    assert raised.value.what.startswith("a command on the lab's machine failed: sh -c ")
    assert (raised.value.why, raised.value.fix) == ("last", "do this")


def test_a_failed_attempt_is_a_result():
    """
    `attempt` raises only if the command could not run to its end.
    """
    result = attempt(["sh", "-c", "exit 3"])

    assert (result.returncode, result.error_line) == (3, "exit status 3")


def test_a_command_that_is_not_installed_is_named():
    with pytest.raises(LabError, match="needs the command slipway-no-such-command"):
        attempt(["slipway-no-such-command"])


def test_a_command_past_its_deadline_is_named():
    """
    It is killed, and the error has its arguments.
    """
    with pytest.raises(LabError, match="timed out: sleep 60"):
        attempt(["sleep", "60"], timeout_s=0.05)


def test_follow_reports_each_line_and_the_last_one_of_a_failure():
    """
    Standard error is part of the output.
    """
    lines = []
    with pytest.raises(LabError) as raised:
        follow(
            ["sh", "-c", "echo one; echo two >&2; exit 1"],
            on_line=lines.append,
            timeout_s=30,
            fix="do this",
        )

    assert lines == ["one", "two"]
    assert raised.value.why == "two"
