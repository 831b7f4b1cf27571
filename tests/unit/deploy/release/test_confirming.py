"""
Hosts keep a release when all of them have answered through their public ports.
"""

import pytest

from deploy.host.protocol import DeadmanConfirm
from deploy.host.sockets import HttpAnswer
from deploy.release.desired import Ending
from tests.builders import make_policy
from tests.unit.deploy.release.conftest import NAMES


def close_public_port(fleet, name):
    fleet.system(name).http_public = lambda *words, **options: HttpAnswer(503, "busy")


def confirmations(fleet):
    """
    Return which hosts were told to keep the release.
    """
    return [
        name
        for name in NAMES
        for verb, request, _ in fleet[name].calls
        if verb == DeadmanConfirm.VERB and request.keep
    ]


def test_no_host_keeps_a_release_that_one_host_does_not_answer_with(fleet):
    """
    Its public port does not answer: all go back, and none was confirmed.
    """
    close_public_port(fleet, "n3")

    outcome = fleet.release()

    assert outcome.ending is Ending.REVERTED
    assert "n3" in outcome.reason
    assert confirmations(fleet) == []
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert all(fleet.good(name) == ["b1"] for name in NAMES)


def test_within_the_budget_the_others_keep_it(fleet):
    """
    The host that does not answer is left out, and taken back before they are told to.
    """
    close_public_port(fleet, "n3")

    outcome = fleet.release(policy=make_policy(failure_budget=1))

    assert outcome.ending is Ending.PROMOTED
    assert confirmations(fleet) == ["n1", "n2"]
    assert [fleet.serves(name) for name in NAMES] == [{"b2": 100}, {"b2": 100}, {"b1": 100}]
    assert all(current.pending is None for current in fleet.observed().values())


def test_every_host_has_answered_before_one_is_told_to_keep_it(fleet):
    """
    Each over a new connection, and once.
    """
    order = []
    for name in NAMES:
        calls = fleet[name].calls
        fleet[name].calls = _Noted(calls, name, order)

    outcome = fleet.release()

    assert outcome.ending is Ending.PROMOTED
    assert [(r.ask, r.keep) for _, r in order] == [(True, False)] * 3 + [(False, True)] * 3
    assert {name for name, _ in order[:3]} == {name for name, _ in order[3:]} == set(NAMES)
    assert all(fleet[name].closed >= 1 for name in NAMES)


class _Noted(list):
    """
    The calls of one host, which are noted in one list of all hosts too.
    """

    def __init__(self, calls, name, order):
        super().__init__(calls)
        self._name, self._order = name, order

    def append(self, call):
        super().append(call)
        if call[0] == DeadmanConfirm.VERB:
            self._order.append((self._name, call[1]))


@pytest.mark.parametrize("after", [1, 2])
def test_an_operator_who_dies_between_confirmations_is_followed_by_another(fleet, after):
    """
    Each host serves one version, and `inv resume` brings the rest.
    """
    left = [after]

    def die(event):
        if event.name == "host.confirmed":
            left[0] -= 1
            if left[0] == 0:
                raise _Died

    fleet.release_dying(die, _Died)
    fleet.clock.sleep(60)
    desired = fleet.stored()

    outcome = fleet.bring(desired.renewed("you@desk"), owner="you", clients=fleet.operator())

    assert outcome.ending is Ending.PROMOTED
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)
    assert all(fleet.good(name) == ["b1", "b2"] for name in NAMES)


def test_what_a_host_keeps_is_not_taken_back_because_another_does_not_answer(fleet):
    """
    The operator died before the last confirmation: the release goes on without the silent host.
    """
    fleet["n3"].calls = _Deadly(fleet["n3"].calls)
    fleet.release_dying(lambda event: None, _Died)
    fleet["n3"].calls = []
    fleet.clock.sleep(60)
    assert fleet.good("n1") == fleet.good("n2") == ["b1", "b2"]
    assert fleet.good("n3") == ["b1"]
    close_public_port(fleet, "n3")

    fleet.bring(fleet.stored().renewed("you@desk"), owner="you", clients=fleet.operator())

    for name in ("n1", "n2"):
        assert fleet.serves(name) == {"b2": 100}
        assert fleet.good(name) == ["b1", "b2"]


class _Deadly(list):
    """
    The calls of a host; the operator dies before it is told to keep the release.
    """

    def append(self, call):
        super().append(call)
        if call[0] == DeadmanConfirm.VERB and call[1].keep:
            raise _Died


class _Died(BaseException):
    pass
