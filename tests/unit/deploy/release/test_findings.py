"""
What `inv status` finds, and when its exit code says so.
"""

import dataclasses

import pytest

from deploy.errors import FleetDiffers, PreconditionError, TransportError
from deploy.host.protocol import KeysStamp, Unfinished, WentBack
from deploy.release.findings import FLEET_NAME, find, fleet_error
from deploy.release.observe import needs_reviving
from tests.builders import make_observed, make_serving, make_settled, make_slot

NAMES = ("n1", "n2", "n3")
LOST = TransportError("n3: no answer", why="timed out", fix="ping it", host="n3")
GOOD = make_settled().good


def fleet(**states):
    return {name: make_settled(name) for name in NAMES} | states


def whats(seen, **options):
    return [(finding.host, finding.what) for finding in find(seen, **options)]


def test_a_fleet_as_it_should_be_has_no_findings():
    """
    Control of all tests below; so has one before its first release.
    """
    assert find(fleet()) == ()
    assert fleet_error(find(fleet())) is None
    assert find({name: make_observed(name) for name in NAMES}) == ()


SPLIT = make_observed(
    "n2", make_serving(weight_pct=90), make_serving("green", "b2", "v2", weight_pct=10), good=GOOD
)
BACK = WentBack("r-v2", 3, "2026-11-26T05:00:00.000Z", "the lease ended")


@pytest.mark.parametrize(
    ("state", "what", "fix"),
    [
        (
            make_observed("n2", make_serving(weight_pct=None), make_slot("green", weight_pct=None)),
            "HAProxy does not answer, so the shares of its traffic are unknown",
            "inv provision --limit n2",
        ),
        (
            make_observed("n2", make_serving(unit="failed", is_ready=False), good=GOOD),
            "slot blue has 100 % of the traffic, and systemd has given up on its unit",
            "inv provision --limit n2 starts it again",
        ),
        (
            make_observed("n2", make_serving(unit="failed", is_masked=True), good=GOOD),
            "slot blue has 100 % of the traffic, and its unit is masked",
            "--runtime slipway-runtime@blue.service, then inv provision --limit n2",
        ),
        (
            make_observed("n2", make_serving(), make_slot("green", is_masked=True), good=GOOD),
            "slot green cannot be started: it is masked",
            "systemctl unmask --runtime slipway-runtime@green.service",
        ),
        (
            make_observed("n2", make_serving(is_ready=False), good=GOOD),
            "slot blue has 100 % of the traffic, and is not ready",
            "journalctl -u slipway-runtime@blue.service on n2",
        ),
        (SPLIT, 'its traffic is split, "v1" 90 % and "v2" 10 %, and no release', "inv abort"),
        (
            make_observed("n2", make_serving(weight_pct=0), good=GOOD),
            "no slot has traffic",
            "inv rollback --limit n2 --to VERSION",
        ),
        (
            make_settled("n2", went_back=BACK),
            'it went back by itself from "r-v2" at "2026-11-26T05:00:00.000Z": "the lease ended"',
            "inv resume",
        ),
        (
            make_settled("n2", is_reserve_whole=False),
            "the reserve for a full disk was used",
            "free space there",
        ),
        (
            make_settled("n2", is_deadman_tested=False),
            "its own way back was never tested: no release begins there",
            "inv provision --limit n2",
        ),
        (
            make_settled("n2", package_units=("slipway-apt.service",)),
            '"slipway-apt.service" changes its packages: no release begins there',
            "inv provision --limit n2",
        ),
        (
            make_settled("n2", package_units=None),
            "systemd does not answer, so whether its packages change is unknown",
            "on n2: systemctl is-system-running",
        ),
        (
            make_settled("n2", is_pending_damaged=True),
            "it does not know what to take back by itself: pending.json is damaged",
            "inv rollback --limit n2",
        ),
        (
            make_settled("n2", is_pending_aside=True),
            "a damaged pending.json was put aside",
            "inv history --limit n2",
        ),
        (
            make_settled("n2", unfinished=Unfinished("r-v2", "traffic.set")),
            'ended in the middle: "r-v2 at traffic.set"',
            "inv rollback --limit n2",
        ),
        (
            make_settled("n2", good=[("b9", "v9")]),
            'it serves "v9", unlike most hosts',
            "inv resume",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_problem_is_a_finding_with_its_remedy(state, what, fix):
    """
    Of its host alone, and the fleet is not as it should be.
    """
    (finding,) = find(fleet(n2=state))
    assert (finding.host, finding.what.startswith(what)) == ("n2", True), finding
    assert fix in finding.fix

    error = fleet_error([finding])
    assert isinstance(error, FleetDiffers)
    assert error.exit_code == 26
    assert error.what.startswith("n2")
    assert what in error.why


def test_an_unreachable_host_says_since_when():
    seen = fleet(n3=LOST)
    assert whats(seen) == [("n3", "n3: no answer: timed out (never seen from this machine)")]
    at = "2026-11-26T05:00:00Z"
    assert whats(seen, last_seen={"n3": at})[0][1].endswith(f"(last seen {at})")
    assert fleet_error(find(seen)).exit_code == 26


def test_a_host_that_cannot_be_read_was_reached():
    error = PreconditionError("n3: another release", why="schema 3", fix="inv provision", host="n3")
    assert whats(fleet(n3=error), last_seen={"n3": "t"}) == [
        ("n3", "n3: another release: schema 3")
    ]


def test_a_release_in_progress_explains_what_it_does():
    """
    A split, hosts that differ and canaries that load: listed, with the exit code 0.
    """
    busy = dataclasses.replace(SPLIT, lease_owner="ann@desk")
    promoted = make_settled("n1", good=[("b2", "v2")], lease_owner="ann@desk")
    seen = fleet(n1=promoted, n2=busy, n4=make_settled("n4"))
    assert [finding.host for finding in find(seen)] == ["n1", "n2"]
    assert fleet_error(find(seen)) is None
    assert fleet_error(find(seen | {"n2": SPLIT, "n1": make_settled("n1")})) is not None  # control


def test_a_release_in_progress_explains_no_dead_host():
    """
    A lost host, a stopped HAProxy and a dead slot are findings at any time.
    """
    dead = make_observed("n2", make_serving(unit="failed"), good=GOOD, lease_owner="ann@desk")
    assert fleet_error(find(fleet(n2=dead))).what == "n2: not as it should be"
    busy = make_settled("n1", lease_owner="ann@desk")
    assert fleet_error(find(fleet(n1=busy, n3=LOST))) is not None


def test_a_pause_waits_for_the_operator_and_is_no_difference():
    findings = find(fleet(n2=make_settled("n2", paused="r-v2")))
    assert [finding.what for finding in findings] == ['paused: "r-v2"']
    assert fleet_error(findings) is None


def test_what_differs_from_the_desired_state_is_a_finding():
    (finding,) = find(fleet(), differs={"n1": "it should serve v2"})
    assert (finding.host, finding.what) == ("n1", "it should serve v2")
    assert fleet_error([finding]).exit_code == 26


def test_no_single_host_makes_the_others_differ():
    """
    What most hosts serve is right; without a majority it is the fleet that is not as it should be.
    """
    odd = make_settled("n1", good=[("b9", "v9")])
    assert [finding.host for finding in find(fleet(n1=odd))] == ["n1"]
    (finding,) = find({"n1": odd, "n2": make_settled("n2")})
    assert finding.host == FLEET_NAME
    assert finding.what.endswith('"v9" on n1; "v1" on n2')
    assert fleet_error([finding]).exit_code == 26
    busy = dataclasses.replace(odd, lease_owner="ann@desk")
    assert fleet_error(find({"n1": busy, "n2": make_settled("n2")})) is None


@pytest.mark.parametrize(
    ("can_resume", "can_abort", "fix"),
    [
        (True, True, "inv resume, inv abort or inv rollback ends it"),
        (False, True, "inv abort or inv rollback ends it"),
        (False, False, "inv rollback ends it"),
    ],
)
def test_only_commands_that_would_work_are_named(can_resume, can_abort, fix):
    """
    A pause that nothing can go on with waits for nobody: it is an error.
    """
    paused = make_settled("n2", paused="r-v2")
    for current in (SPLIT, paused):
        findings = find(fleet(n2=current), can_resume=can_resume, can_abort=can_abort)
        if current is paused and can_resume:
            assert fleet_error(findings) is None
            continue
        assert findings[0].fix == f"{fix}; alone: inv rollback --limit n2"
        assert fleet_error(findings) is not None


@pytest.mark.parametrize(
    ("current", "reason"),
    [
        (make_settled(), None),
        (make_observed("n1"), None),
        (make_observed("n1", make_serving(unit="failed")), None),
        (make_observed("n1", make_serving(weight_pct=None)), "HAProxy does not answer"),
        (
            make_observed("n1", make_serving(haproxy="DOWN", is_ready=False)),
            "no slot answers, and blue runs",
        ),
        (make_observed("n1", make_serving(haproxy="UP", is_ready=False)), None),
    ],
)
def test_what_needs_reviving_before_a_way_back(current, reason):
    """
    A dead unit does not: a way back starts its target anyway.
    """
    assert needs_reviving(current) == reason


KEYS = KeysStamp(3, "a" * 64)


def with_keys(**stamps):
    return {
        name: dataclasses.replace(make_settled(name), keys=stamps.get(name, KEYS)) for name in NAMES
    }


def test_a_host_with_other_api_keys_than_most_is_named():
    """
    Also one that has none: it was installed anew.
    """
    assert find(with_keys()) == ()
    found = find(with_keys(n2=KeysStamp(2, "b" * 64)))
    assert [(one.host, one.what) for one in found] == [
        ("n2", "its API keys are not those of most hosts: version 2")
    ]
    assert "inv keys.sync" in found[0].fix
    assert whats(with_keys(n3=None)) == [("n3", "its API keys are not those of most hosts: none")]


def test_a_host_that_alone_has_api_keys_is_named():
    """
    That a host has none counts as much.
    """
    assert whats(with_keys(n1=KEYS) | {n: make_settled(n) for n in NAMES if n != "n1"}) == [
        ("n1", "its API keys are not those of most hosts: version 3")
    ]


def test_a_damaged_list_of_api_keys_is_named():
    damaged = dataclasses.replace(make_settled("n2"), keys=None, keys_damage="not JSON")
    assert whats(with_keys() | {"n2": damaged}) == [
        ("n2", 'its list of API keys is damaged: "not JSON"')
    ]
