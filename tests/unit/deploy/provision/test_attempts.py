"""
When a host is given up whose changes do not last.
"""

import pytest

from deploy.provision.attempts import Round, reason_to_stop

MODE = {"/etc/x": "mode 0777 → 0755"}
OTHER = {"/etc/x": "owner bin:bin → root:root"}


def history(*looks, changed="/etc/x"):
    return [Round(frozenset({changed}), look) for look in looks]


@pytest.mark.parametrize(
    ("looks", "now", "why"),
    [
        ([], MODE, None),
        ([MODE], MODE, None),
        ([MODE, MODE], MODE, "changed twice without effect"),
        ([OTHER, MODE], MODE, None),
        ([MODE, OTHER, MODE], MODE, None),
        ([MODE, {}], MODE, None),
        ([MODE, {}, MODE], {}, None),
        ([MODE, {}, MODE, {}], MODE, "different again, twice"),
        ([MODE, {}, OTHER, {}], MODE, "different again, twice"),
        ([MODE, OTHER] * 3, MODE, "still different after 6 rounds"),
        ([MODE, OTHER] * 3, {}, None),
    ],
)
def test_what_is_seen_twice_ends_the_run(looks, now, why):
    """
    Once may be the fault of something that ends by itself.
    """
    stop = reason_to_stop(history(*looks), now, rounds_max=6) if now else None
    assert (stop is None) if why is None else (why in stop.why)


def test_only_a_reversal_is_blamed_on_another_program():
    """
    A change without effect has another remedy.
    """
    reverted = reason_to_stop(history(MODE, {}, MODE, {}), MODE, rounds_max=9)
    without_effect = reason_to_stop(history(MODE, MODE), MODE, rounds_max=9)
    assert "configuration tool" in reverted.fix
    assert "configuration tool" not in without_effect.fix
    assert MODE["/etc/x"] in without_effect.why


def test_what_was_not_changed_yet_is_no_failure():
    """
    Services wait until the disk is right.
    """
    rounds = history(MODE, MODE, changed="/etc/y")
    assert reason_to_stop(rounds, MODE, rounds_max=9) is None
