import json

import pytest

from deploy.host.deadman.way_back import check
from deploy.host.layout import DEADMAN_BOOT, DEADMAN_TIMER
from deploy.host.protocol import (
    DeadmanArm,
    DeadmanConfirm,
    DeadmanDisarm,
    SlotStop,
    TrafficSet,
)
from deploy.host.slots.public_port import ASK_ATTEMPTS
from deploy.host.sockets import HttpAnswer
from tests.local_host import BOOT, serve
from tests.unit.deploy.host.deadman.builders import (
    EPOCH,
    TTL_S,
    V1,
    V2,
    armed,
    assert_back,
    operator_dies,
    shift,
    take,
    write_pending,
)

ARM = DeadmanArm("green", "blue")
CONFIRM = DeadmanConfirm(V2, "v2")


def document(host):
    return json.loads(host.layout.pending.read_text())


# -- arm


def test_an_armed_host_has_written_down_what_it_takes_back(host):
    """
    Release, epoch, slots and boot; the lease is the deadline.
    """
    take(host)

    assert host.call(ARM).left_s == TTL_S

    assert document(host) == {
        "release": "r1", "epoch": EPOCH, "to_slot": "green", "from_slot": "blue",
        "boot_id": BOOT, "at": None, "why": None,
    }  # fmt: skip
    host.clock.pass_s(10)
    pending = host.status().pending
    assert (pending.release, pending.from_slot, pending.left_s) == ("r1", "blue", TTL_S - 10)


def test_arming_again_writes_nothing_new(host):
    take(host)
    host.call(ARM)
    before, lines = host.layout.pending.stat(), len(host.journal())

    host.call(ARM)

    assert host.layout.pending.stat().st_mtime_ns == before.st_mtime_ns
    assert len(host.journal()) == lines


def test_a_takeover_keeps_the_way_back(host):
    """
    The next operator sees green serving, and may take it for the slot to go back to.
    """
    armed(host, 100)
    operator_dies(host)
    take(host, EPOCH + 1, "bob@desk:2")

    host.call(DeadmanArm("green", None))

    assert (document(host)["from_slot"], document(host)["epoch"]) == ("blue", EPOCH + 1)


def test_a_change_of_the_other_slot_is_refused_while_one_is_pending(host):
    """
    It would replace what the host goes back to.
    """
    armed(host, 100)
    before = document(host)

    error = host.refusal(DeadmanArm("blue", "green"))

    assert error.kind == "PreconditionError"
    assert "green has a change" in error.what
    assert document(host) == before


def test_a_rollback_turns_its_way_round_once_its_target_is_warm(host):
    """
    Until then the host goes back to what serves; afterwards, to the target.
    """
    armed(host, 0)

    host.call(DeadmanArm("blue", "green"))

    turned = document(host)
    assert (turned["to_slot"], turned["from_slot"]) == ("blue", "green")
    host.call(DeadmanArm("blue", "green"))
    assert document(host) == turned


def test_a_newer_rollback_turns_the_way_of_one_that_died(host):
    """
    Its target was warm already: nothing else would arm what the newer one needs.
    """
    armed(host, 0)
    host.release = "r2"
    host.clock.pass_s(TTL_S + 1)
    take(host, EPOCH + 1, release="r2")

    host.call(DeadmanArm("blue", "green"))

    turned = document(host)
    assert (turned["release"], turned["to_slot"], turned["from_slot"]) == ("r2", "blue", "green")


@pytest.mark.parametrize("release", ["r1", "r2"])
def test_a_way_is_turned_round_only_before_its_traffic(host, release):
    """
    Otherwise a canary could become what the host goes back to.
    """
    armed(host, 1)
    host.release = release
    if release != "r1":
        host.clock.pass_s(TTL_S + 1)
        take(host, EPOCH + 1, release=release)
    before = document(host)

    assert host.refusal(DeadmanArm("blue", "green")).kind == "PreconditionError"
    assert document(host) == before


def test_a_later_release_may_replace_a_pending_one_in_its_slot(host):
    """
    The slot to go back to stays; where there was none, the new one is taken.
    """
    take(host)
    host.call(DeadmanArm("green", None))
    host.clock.pass_s(TTL_S + 1)
    take(host, EPOCH + 1, release="r2")
    host.call(ARM)
    assert (document(host)["release"], document(host)["from_slot"]) == ("r2", "blue")


def test_a_slot_is_no_way_back_from_itself(host):
    take(host)
    assert host.refusal(DeadmanArm("green", "green")).kind == "UsageError"


def test_nothing_is_armed_that_a_reboot_takes_back(host):
    """
    Its check would work against the operator.
    """
    armed(host)
    host.system.boot = "another"
    take(host, EPOCH + 1)

    assert "going back" in host.refusal(ARM).what


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lambda host: host.layout.deadman_tested.unlink(), "not tested"),
        (lambda host: host.layout.host_program.write_bytes(b"another"), "not tested"),
        (lambda host: host.layout.deadman_units[0].write_bytes(b"another"), "not tested"),
        (lambda host: host.layout.deadman_units[0].unlink(), "not tested"),
        (lambda host: setattr(timer(host), "active", "inactive"), "switched off"),
        (lambda host: setattr(timer(host), "enabled", False), "switched off"),
        (lambda host: setattr(host.system.units[DEADMAN_BOOT], "enabled", False), "switched off"),
    ],
    ids=["no mark", "program", "unit", "no unit", "stopped", "timer disabled", "boot disabled"],
)
def test_a_host_whose_way_back_is_not_tested_is_refused(host, break_, said):
    """
    The remedy is provisioning, and nothing is written.
    """
    take(host)
    break_(host)

    error = host.refusal(ARM)

    assert (error.kind, said in error.what) == ("PreconditionError", True)
    assert "inv provision" in error.fix
    assert not host.layout.pending.exists()


def timer(host):
    return host.system.units[DEADMAN_TIMER]


# -- confirm


@pytest.fixture
def promoted(host):
    return armed(host, 100)


def test_a_confirmed_release_stays(promoted):
    """
    After a request through the public port, with its token, and also without an operator.
    """
    promoted.layout.etc.mkdir(parents=True, exist_ok=True)
    promoted.layout.environment.write_text("SLIPWAY_API_TOKENS=first,second\n")
    seen = promoted.system.runtimes["green"].seen

    assert promoted.call(CONFIRM).checked

    assert seen == [({"prompt": "sun", "max_tokens": 1, "temperature": 0}, "first")]
    operator_dies(promoted)
    assert check(promoted.system) == "nothing is pending"
    assert promoted.system.proxy.weights == {"blue": 0, "green": 100}


def test_a_release_with_a_golden_conversation_is_asked_it(promoted):
    """
    As a chat, for one token.
    """
    messages = [{"role": "user", "content": "hi"}]
    line = {"messages": messages, "max_tokens": 9, "expected": "x"}
    (promoted.layout.release(V2) / "golden.jsonl").write_text(json.dumps(line))

    assert promoted.call(CONFIRM).checked

    (body, _) = promoted.system.runtimes["green"].seen[0]
    assert body == {"messages": messages, "max_tokens": 1, "temperature": 0}


def test_a_release_without_golden_prompts_is_asked_for_its_models(promoted):
    (promoted.layout.release(V2) / "golden.jsonl").write_text("")

    assert promoted.call(CONFIRM).checked
    assert promoted.system.runtimes["green"].seen == []


def test_a_confirmation_is_repeated_after_a_lost_answer(promoted):
    """
    The second one asks nothing.
    """
    promoted.call(CONFIRM)
    promoted.system.http_public = None

    assert promoted.call(CONFIRM).checked is False


def test_the_request_alone_confirms_nothing(promoted):
    """
    The host goes back when the operator dies, and keeps the release with the second call.
    """
    assert promoted.call(DeadmanConfirm(V2, "v2", keep=False)).checked
    assert promoted.layout.pending.exists()
    promoted.system.http_public = None

    assert promoted.call(DeadmanConfirm(V2, "v2", ask=False)).checked is False
    assert not promoted.layout.pending.exists()


def test_a_confirmation_ends_what_was_taken_back_before(host):
    """
    `went_back` is of what was not confirmed since.
    """
    armed(host)
    operator_dies(host)
    check(host.system)
    take(host, EPOCH + 1, release="r2")
    host.call(ARM)
    assert host.status().went_back.release == "r1"
    host.call(TrafficSet({"blue": 100}))
    host.system.unit_of("green").run()
    shift(host, 100)

    host.call(CONFIRM)

    assert host.status().went_back is None


def refused(host, said, request=CONFIRM, kind="PreconditionError"):
    error = host.refusal(request)
    assert error.kind == kind
    assert said in error.why
    assert host.layout.pending.exists() or not host.layout.confirmed.exists()


def test_what_went_back_is_never_confirmed(promoted):
    """
    An answer that comes late: the host serves the old release.
    """
    operator_dies(promoted)
    check(promoted.system)
    take(promoted, EPOCH + 1)

    refused(promoted, "went back by itself")
    assert_back(promoted)


def test_a_host_that_was_never_armed_is_not_confirmed(host):
    take(host)
    refused(host, "nothing is pending")


def test_a_host_is_confirmed_for_what_it_is_armed_for(promoted):
    """
    Another bundle, another release, or a reboot since.
    """
    refused(promoted, "has bundle", DeadmanConfirm(V1, "v1"))
    promoted.system.boot = "another"
    take(promoted, EPOCH + 1)
    refused(promoted, "rebooted")
    promoted.system.boot = BOOT
    operator_dies(promoted)
    take(promoted, EPOCH + 2, release="r2")
    refused(promoted, "armed for release r1")


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lambda host: shift(host, 10), "by version v1"),
        (lambda host: setattr(host.system.proxy, "is_running", False), "refused"),
        (lambda host: host.system.unit_of("green").fail(), "answered 502"),
        (lambda host: setattr(host.system.runtimes["green"], "fails_with", 401), "answered 401"),
    ],
    ids=["another version", "no HAProxy", "slot dead", "an error"],
)
def test_a_release_that_does_not_answer_its_users_is_not_confirmed(promoted, break_, said):
    """
    The host stays armed, and goes back unless it is confirmed later.
    """
    break_(promoted)

    refused(promoted, said, kind="CommandFailed")
    assert promoted.layout.pending.exists()


def test_the_public_port_is_asked_a_bounded_number_of_times(promoted):
    """
    One bad answer is no refusal; only bad ones are, and no longer than the deadline.
    """
    good = promoted.system.http_public
    answers = iter([HttpAnswer(None, "reset"), HttpAnswer(503, "busy")])
    promoted.system.http_public = lambda *a, **k: next(answers, None) or good(*a, **k)
    assert promoted.call(CONFIRM).checked
    take(promoted, EPOCH + 1)
    promoted.call(ARM)
    asked = []
    promoted.system.http_public = lambda *a, **k: asked.append(k) or HttpAnswer(503, "busy")

    refused(promoted, "503", kind="CommandFailed")

    assert len(asked) == ASK_ATTEMPTS
    assert all(0 < k["timeout_s"] <= 10 for k in asked)


def test_a_lease_that_ends_while_the_public_port_is_asked_confirms_nothing(promoted):
    """
    The check may have begun.
    """
    good = promoted.system.http_public

    def slowly(*args, **more):
        operator_dies(promoted)
        return good(*args, **more)

    promoted.system.http_public = slowly

    assert promoted.refusal(CONFIRM).kind == "LeaseLost"
    assert promoted.layout.pending.exists()


# -- disarm


def test_a_host_with_traffic_on_the_change_is_not_disarmed(host):
    """
    It is once the slot has none.
    """
    armed(host)

    error = host.refusal(DeadmanDisarm())
    assert (error.kind, "its weight is 10" in error.why) == ("PreconditionError", True)
    assert host.layout.pending.exists()

    host.call(TrafficSet({"blue": 100, "green": 0}))
    assert host.call(DeadmanDisarm()).disarmed
    assert host.status().pending is None
    assert host.call(DeadmanDisarm()).disarmed is False


def test_a_host_whose_haproxy_is_silent_is_not_disarmed(host):
    """
    It is unknown whether the slot has traffic.
    """
    armed(host)
    host.system.proxy.is_running = False

    assert host.refusal(DeadmanDisarm()).kind == "CommandFailed"
    assert host.layout.pending.exists()


def test_a_disarmed_host_does_not_go_back(host):
    armed(host)
    host.call(TrafficSet({"blue": 100, "green": 0}))
    host.call(DeadmanDisarm())
    operator_dies(host)

    assert check(host.system) == "nothing is pending"
    assert host.units["green"].active == "active"


# -- status

DAMAGES = (
    "", "{torn", "[]", "{}", "null", "[" * 100_000, '{"release": 1}', '"text"', "\0" * 100,
    '{"release": "r", "epoch": "7", "to_slot": "green", "from_slot": null, "boot_id": "b"}',
    '{"release": "r", "epoch": true, "to_slot": "green", "from_slot": null, "boot_id": "b"}',
    '{"release": "r", "epoch": 7, "to_slot": "red", "from_slot": null, "boot_id": "b"}',
    '{"release": "r", "epoch": 7, "to_slot": [], "from_slot": {}, "boot_id": "b"}',
    '{"release": "r", "epoch": 7, "to_slot": "blue", "from_slot": "blue", "boot_id": "b"}',
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_never_break_status(host, damage):
    """
    Nor do they stop the verbs.
    """
    for path in (
        host.layout.pending,
        host.layout.went_back,
        host.layout.confirmed,
        host.layout.deadman_tested,
    ):
        path.write_text(damage)

    status = host.status()
    assert (status.pending, status.went_back, status.is_deadman_tested) == (None, None, False)
    take(host)
    assert "nothing is pending" in host.refusal(CONFIRM).why


def test_whole_files_are_shown(host):
    """
    Negative control of the list above.
    """
    write_pending(host, boot_id=BOOT)
    host.layout.went_back.write_text(host.layout.pending.read_text())
    status = host.status()
    assert status.pending.left_s == 0
    assert (status.went_back.release, status.went_back.at[:3]) == ("r1", "202")
    assert status.is_deadman_tested


def test_a_first_release_has_no_way_back_but_to_stop(host):
    """
    from_slot is null: going back leaves the host without service, as it was.
    """
    serve(host.system, V1, "v1", "blue")
    take(host)
    host.call(TrafficSet({"blue": 0}, force=True))
    host.call(SlotStop("blue"))
    host.call(DeadmanArm("green", None))

    assert host.status().pending.from_slot is None
