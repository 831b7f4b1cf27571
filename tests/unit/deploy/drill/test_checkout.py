"""
Tasks that the drill runs in a checkout.
"""

import time

import pytest

from deploy.drill.checkout import must_run
from deploy.errors import CommandFailed, LeaseHeld

# A checkout whose task is refused as often as a file says.
TASK = """
import pathlib, sys
left = pathlib.Path("refusals")
count = int(left.read_text())
left.write_text(str(count - 1))
print("{}")
sys.exit(%d if count else 0)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    package = tmp_path / "deploy" / "cli"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(TASK % LeaseHeld.exit_code)

    def refusing(count):
        (tmp_path / "refusals").write_text(str(count))
        return tmp_path

    return refusing


def test_a_task_waits_for_the_lease_of_an_operator_who_died(checkout):
    assert must_run(checkout(2), ["release"], held_s=600.0).code == 0


def test_a_lease_is_not_waited_for_where_none_can_be_left(checkout):
    with pytest.raises(CommandFailed, match=f"exit {LeaseHeld.exit_code}"):
        must_run(checkout(1), ["release"])
