"""
The remedy for hosts that differ names the release and the hosts that it moves.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from deploy.host.protocol import StateStamp
from deploy.release.desired import Desired, Ending, Goal
from deploy.release.one_release import differing, remedy
from deploy.release.plan import Kind
from tests.builders import make_settled

OLD, NEW = ("b1", "v1"), ("b2", "v2")


def seen(*goods):
    """
    Return hosts n1, n2... that serve the last of the releases that each has on record.
    """
    return {f"n{i}": make_settled(f"n{i}", good=good) for i, good in enumerate(goods, 1)}


def test_hosts_that_serve_the_same_need_nothing():
    assert differing(seen((OLD, NEW), (NEW,))) == ""


def test_it_goes_to_what_most_hosts_serve_and_says_who_moves():
    hosts = seen((OLD, NEW), (OLD, NEW), (OLD,))
    assert differing(hosts) == '"v2" on n1, n2; "v1" on n3'
    assert remedy(hosts) == "inv rollback --to v2 moves n3"


def test_without_a_majority_the_operator_chooses():
    """
    What all have on record comes first: n2 can get v2 only where its bundle is.
    """
    assert remedy(seen((OLD, NEW), (OLD,))) == (
        "no release serves on most hosts, choose: inv rollback --to v1 moves n1; or "
        "inv rollback --to v2 moves n2"
    )


def test_a_version_that_is_no_name_or_not_the_only_one_is_named_by_its_digest():
    digest = make_settled(good=(("b2", "v"),)).good[-1].bundle[:12]
    for hosts in (
        seen((("b2", "v2; rm -rf /\n" + "x" * 999),), (("b2", "v2; rm -rf /"),), (OLD,)),
        seen((("b2", "v1"),), (("b2", "v1"),), (("b1", "v1"),)),
    ):
        assert remedy(hosts) == f"inv rollback --to {digest} moves n3"
        assert "\n" not in differing(hosts)
        assert differing(hosts)
        assert len(differing(hosts)) < 300


def ended(ending, kind=Kind.RELEASE, to="b2", of="b1"):
    """
    Return the state on record, of epoch 5: all hosts went from *of* to *to*, and it ended so.
    """
    bundles = {n: make_settled(good=((n, "v"),)).good[-1].bundle for n in ("b1", "b2")}
    plan = SimpleNamespace(
        kind=kind, bundle=bundles[to], hosts=[SimpleNamespace(from_bundle=bundles[of])] * 3
    )
    return Desired("r", "ann", Goal.FORWARD, plan, ending=ending, epoch=5)


@pytest.mark.parametrize(
    "last",
    [ended(Ending.REVERTED), ended(Ending.ROLLED_BACK, Kind.ROLLBACK, to="b1", of="b2")],
    ids=["a release that was reverted", "a rollback"],
)
@pytest.mark.parametrize("serving", [(NEW, OLD), (NEW, NEW, OLD)], ids=["one of two", "most"])
def test_what_the_fleet_was_taken_back_from_is_no_remedy(serving, last):
    """
    A gate or an operator refused it, however many hosts serve it again.
    """
    hosts = seen(*((OLD, one) if one is NEW else (OLD,) for one in serving))
    moved = ", ".join(f"n{n}" for n, one in enumerate(serving, 1) if one is NEW)
    assert remedy(hosts, last) == f"inv rollback --to v1 moves {moved}"
    assert "--to v2" in remedy(hosts, ended(Ending.PROMOTED)), "control"


def test_where_nothing_else_serves_it_is_what_the_fleet_went_back_to():
    hosts = seen((OLD, NEW), (OLD, NEW))
    hosts["n2"] = replace(
        hosts["n2"], slots=tuple(replace(s, weight_pct=0) for s in hosts["n2"].slots)
    )
    assert differing(hosts) == '"v2" on n1; nothing on n2'
    assert remedy(hosts, ended(Ending.REVERTED)) == "inv rollback --to v1 moves n1, n2"


def test_a_host_that_was_moved_since_is_not_outvoted():
    """
    An operator took n3 back while the others did not answer; these decide nothing for it.
    """
    hosts = seen((OLD, NEW), (OLD, NEW), (OLD,))
    for epoch, said in ((5, "inv rollback --to v2 moves n3"), (6, "hosts were moved since, ch")):
        hosts["n3"] = replace(hosts["n3"], state=StateStamp(epoch, 1, "0" * 64))
        assert remedy(hosts, ended(Ending.PROMOTED)).startswith(said)


def test_hosts_that_cannot_be_read_have_no_vote_and_count():
    hosts = seen((OLD, NEW), (OLD, NEW), (OLD,))
    assert remedy(hosts, None, 0).startswith("inv rollback --to v2")
    assert remedy(hosts, None, 1).startswith("no release serves on most hosts, choose")
