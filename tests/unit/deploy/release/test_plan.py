import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import PreconditionError, UsageError
from deploy.release.plan import plan_release, split_waves
from tests.builders import make_observed, make_policy, make_serving, make_settled, make_slot


def plan(observed, *, bundle="b2", canary_pct=10, **policy):
    return plan_release(
        fleet="lab",
        bundle=bundle,
        version="v2",
        canary_pct=canary_pct,
        policy=make_policy(**policy),
        observed={one_host.host: one_host for one_host in observed},
    )


def test_a_host_takes_the_new_release_in_the_slot_that_does_not_serve():
    release_plan = plan([make_settled("n1")])

    assert (release_plan.host("n1").from_slot, release_plan.host("n1").to_slot) == ("blue", "green")
    assert release_plan.host("n1").from_version == "v1"
    assert not release_plan.host("n1").clear_first


def test_a_host_that_serves_the_bundle_is_skipped():
    """
    Only the other hosts are released; without any the plan is a noop.
    """
    there = make_settled("n1", good=[("b2", "v2")])

    assert plan([there, make_settled("n2")]).unchanged == ("n1",)
    assert plan([there]).is_noop


def test_a_slot_that_is_not_idle_is_cleared_first():
    """
    A slot that an interrupted release used is stopped first.
    """
    left = make_serving("green", "b9", "v9", weight_pct=10)
    observed = make_observed("n1", make_serving(weight_pct=90), left, good=make_settled().good)

    assert plan([observed]).host("n1").clear_first
    assert plan([observed]).host("n1").to_slot == "green"


def test_the_release_on_record_is_stable_even_when_a_canary_has_more_traffic():
    """
    An operator who died between promoting a host and recording it left an unproven release.
    """
    promoted = make_serving("green", "b9", "v9", weight_pct=100)
    observed = make_observed("n1", make_serving(weight_pct=0), promoted, good=make_settled().good)

    assert plan([observed]).host("n1").from_slot == "blue"


UNREADY = make_serving(is_ready=False)
STARTING = make_serving(is_ready=False, unit="activating", haproxy="DOWN")


@pytest.mark.parametrize("slot", [UNREADY, STARTING], ids=["unready", "starting"])
def test_a_serving_slot_that_is_not_ready_is_replaced_without_a_canary(slot):
    """
    No slot can refuse its own replacement; the plan says why there is no canary.
    """
    release_plan = plan([make_observed("n1", slot, good=make_settled().good), make_settled("n2")])

    host = release_plan.host("n1")
    assert (host.from_slot, host.to_slot, host.has_stable) == ("blue", "green", False)
    assert release_plan.host("n2").has_stable
    assert "all the traffic (v1 is not ready there now)" in "\n".join(release_plan.steps())


def test_the_slot_that_is_not_ready_makes_way_where_another_one_serves():
    """
    An unfinished release that is ready keeps the traffic while the new one starts.
    """
    left = make_serving("green", "b9", "v9", weight_pct=10)
    observed = make_observed("n1", make_serving(is_ready=False, weight_pct=90), left,
                             good=make_settled().good)  # fmt: skip

    host = plan([observed]).host("n1")
    assert (host.from_slot, host.to_slot, host.clear_first) == ("green", "blue", True)


def test_a_slot_cannot_void_the_plan_to_replace_it():
    """
    The digest does not change with what a slot says of its readiness; with its traffic it does.
    """
    good = make_settled().good
    ready = plan([make_observed("n1", make_serving(), good=good)])
    unready = plan([make_observed("n1", UNREADY, good=good)])
    assert ready.digest == unready.digest
    assert plan([make_observed("n1", make_serving(weight_pct=0), good=())]).digest != ready.digest


def test_an_unreadable_haproxy_stops_the_plan():
    with pytest.raises(PreconditionError, match="n1"):
        plan([make_observed("n1", make_serving(weight_pct=None), good=make_settled().good)])


def test_a_host_whose_packages_change_stops_the_plan():
    """
    The error has host, unit and remedy; a host that is not touched stops nothing.
    """
    busy = make_settled("n1", package_units=("slipway-apt.service",))

    with pytest.raises(PreconditionError, match="n1") as refused:
        plan([busy, make_settled("n2")])

    assert "slipway-apt.service" in refused.value.why
    assert "inv provision --limit n1" in refused.value.fix
    assert plan([busy], bundle="b1").is_noop


def test_a_host_whose_packages_are_unknown_stops_the_plan():
    with pytest.raises(PreconditionError, match="n1: systemd does not answer"):
        plan([make_settled("n1", package_units=None), make_settled("n2")])


@pytest.mark.parametrize("share", [0, -1, 51, 100])
def test_a_share_outside_1_to_50_is_refused(share):
    with pytest.raises(UsageError, match=str(share)):
        plan([make_settled("n1")], canary_pct=share)


@pytest.mark.parametrize("share", [1, 50])
def test_the_ends_of_the_range_are_allowed(share):
    assert plan([make_settled("n1")], canary_pct=share).canary_pct == share


def test_the_digest_stands_for_the_world_that_was_seen():
    """
    Same inputs, same digest; another bundle, share or observed release, another.
    """
    same = plan([make_settled("n1")]).digest
    assert plan([make_settled("n1")]).digest == same
    assert plan([make_settled("n1")], bundle="b3").digest != same
    assert plan([make_settled("n1")], canary_pct=11).digest != same
    assert plan([make_settled("n1", good=[("b0", "v0")])]).digest != same
    assert plan([make_observed("n1", make_slot())]).digest != same


def test_the_steps_name_every_host_and_the_canary():
    text = "\n".join(plan([make_settled("n1"), make_observed("n2")]).steps())
    assert "10 % canary against v1" in text
    assert "n2: arm the host's own way back, start v2 in blue" in text


waves = st.lists(
    st.one_of(st.integers(1, 10), st.integers(1, 100).map(lambda n: f"{n}%")), min_size=1
)


@given(st.integers(0, 12), waves)
def test_waves_hold_each_host_once_in_order(count, shape):
    """
    For any fleet, every host is released once, in the fleet's order.
    """
    hosts = [f"n{i}" for i in range(count)]
    cut = split_waves(hosts, shape)
    assert [host for wave in cut for host in wave] == hosts
    assert all(cut)


def test_percentages_round_up():
    assert split_waves(["a", "b", "c"], [1, "50%", "100%"]) == (("a",), ("b",), ("c",))
    assert split_waves(list("abcdefgh"), [1, "25%", "100%"]) == (
        ("a",),
        ("b",),
        tuple("cdefgh"),
    )
