"""
The remedy for hosts that differ names the release and the hosts that it moves.
"""

from deploy.release.one_release import differing, remedy
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
