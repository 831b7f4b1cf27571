import contextlib
import errno
import fcntl
import json
import os
import subprocess
import threading

import pytest

from deploy.host import __main__ as program
from deploy.host import reserve
from deploy.host.__main__ import OWN, run_own
from deploy.host.deadman import pending, way_back
from deploy.host.deadman.way_back import check
from deploy.host.journal import Journal
from deploy.host.layout import HAPROXY_UNIT
from deploy.host.lease import Leases
from deploy.host.protocol import (
    DeadmanArm,
    DeadmanConfirm,
    DeadmanDisarm,
    HostError,
    JournalAppend,
    LeaseAcquire,
    LeaseRelease,
    LeaseRenew,
    SlotStart,
    SlotStop,
    TrafficDrain,
    TrafficSet,
)
from tests.local_host import FakeClock, serve
from tests.unit.deploy.host.deadman.builders import (
    EPOCH,
    TTL_S,
    V1,
    V2,
    armed,
    assert_back,
    booted,
    operator_dies,
    take,
)
from tests.unit.deploy.host.fakes import TemporaryHost, short_directory
from tests.unit.deploy.host.test_reserve import disk, fill, lay  # noqa: F401

PLACES = ["", "{torn", "[]", '{"release": 1}', "directory", "link", "dangling link", "pipe"]


def put(path, damage):
    """
    Put *damage*, a text or the name of something that is no plain file, in the place of *path*.
    """
    path.unlink(missing_ok=True)
    match damage:
        case "directory":
            (path / "content").mkdir(parents=True)
        case "link" | "dangling link":
            target = path.with_name("elsewhere")
            if damage == "link":
                target.write_text("{}")
            path.symlink_to(target)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.write_text(damage)


def left_to_do(host):
    """
    Run the check, and return the HostError with which it ends.
    """
    with pytest.raises(HostError) as caught:
        check(host.system)
    return caught.value


def state_of(host):
    """
    Return all that the check could change.
    """
    units = {slot: (one.active, one.enabled) for slot, one in host.units.items()}
    return host.system.proxy.weights, units, host.layout.pending.exists()


# -- when


@pytest.mark.parametrize("share", [0, 10, 100])
def test_a_host_without_an_operator_goes_back(host, share, monkeypatch):
    """
    Before, during and after the shift of the traffic; on the host's own record and by its means.
    """
    armed(host, share)
    operator_dies(host)
    host.system.calls.clear()
    with monkeypatch.context() as without:
        without.setattr(host.system, "http", None)
        without.setattr(host.system, "http_public", None)
        assert "taken back" in check(host.system)

    assert {argv[0] for argv in host.system.calls} == {"systemctl"}
    assert_back(host)
    assert "no lease" in host.status().went_back.why


def test_a_host_with_an_operator_does_not(host):
    """
    Negative control: the same host while its lease is renewed, by whomever.
    """
    armed(host)
    before = state_of(host)
    for _ in range(5):
        host.clock.pass_s(TTL_S - 1)
        host.call(LeaseRenew(TTL_S))
        assert "its operator has the host" in check(host.system)
    operator_dies(host)
    take(host, EPOCH + 1, "bob@desk:2")

    assert "its operator has the host" in check(host.system)

    assert state_of(host) == before


def test_a_lease_that_was_released_is_none(host):
    """
    An operator who leaves without confirming.
    """
    armed(host)
    host.call(LeaseRelease())

    check(host.system)

    assert_back(host)


def test_a_reboot_takes_back_also_under_a_lease(host):
    """
    A new operator is there before the check: a reboot commits nothing.
    """
    armed(host)
    host.system.boot = "another"
    take(host, EPOCH + 1)

    check(host.system)

    assert_back(host)
    assert "rebooted" in host.status().went_back.why


def test_setting_the_wall_clock_takes_nothing_back(host):
    """
    The lease is on the boot clock.
    """
    armed(host)
    before = state_of(host)

    host.clock.wall += 10**6
    check(host.system)

    assert state_of(host) == before


def test_what_went_back_is_done_once(host):
    """
    The check after it changes nothing.
    """
    armed(host)
    operator_dies(host)
    check(host.system)
    before = len(host.system.calls)

    assert check(host.system) == "nothing is pending"

    assert len(host.system.calls) == before


# -- how


def test_users_have_a_slot_at_every_step(host):
    """
    The weight of blue rises before that of green falls, and green stops after that.
    """
    armed(host, 100)
    operator_dies(host)
    seen = []
    ask = host.system.proxy.ask

    def watched(command, *more):
        answer = ask(command, *more)
        servers = host.system.proxy.servers
        up = [s for s in servers if servers[s].weight and servers[s].health]
        seen.append(bool(up) and all(host.units[s].active == "active" for s in up))
        return answer

    host.system.proxy.ask = watched
    host.system.before = lambda _: watched("show stat", host.clock.steady, host.system._is_ready)

    check(host.system)

    assert all(seen)
    assert len(seen) > 10


def test_a_stable_slot_that_is_slow_is_waited_for(host):
    """
    The new one keeps its traffic until then, whatever the number of checks.
    """
    armed(host, 100)
    operator_dies(host)
    host.system.runtimes["blue"].is_ready = False
    for _ in range(3):
        assert "keeps its traffic" in left_to_do(host).why
        assert host.system.proxy.weights["green"] == 100
        assert host.units["green"].active == "active"
        host.clock.pass_s(5)
    assert host.status().pending.left_s == 0
    host.system.runtimes["blue"].is_ready = True

    check(host.system)

    assert_back(host)


def test_a_stable_slot_that_died_is_started(host):
    """
    Its unit failed and will not be restarted by systemd.
    """
    armed(host, 100)
    operator_dies(host)
    host.units["blue"].fail()

    check(host.system)

    assert_back(host)


def test_without_any_slot_that_is_up_the_new_one_makes_room(host):
    """
    It may hold the GPU memory that the other one needs.
    """
    armed(host, 100)
    operator_dies(host)
    host.units["blue"].fail()
    host.units["blue"].starts = "hang"
    host.units["green"].fail()

    assert "being started" in left_to_do(host).why
    assert host.system.proxy.weights == {"blue": 100, "green": 0}
    assert not host.units["green"].enabled
    host.units["blue"].how = "ready"

    check(host.system)

    assert_back(host)


def test_a_slot_without_traffic_is_not_kept_for_users(host):
    """
    It serves nobody, so it is stopped although blue is not UP.
    """
    armed(host, 0)
    operator_dies(host)
    host.system.runtimes["blue"].is_ready = False

    left_to_do(host)

    assert host.units["green"].active == "inactive"


@pytest.mark.parametrize("stops", ["slow", "hang", "forks"])
def test_a_slot_that_does_not_end_is_killed(host, stops):
    armed(host)
    operator_dies(host)
    host.units["green"].stops = stops

    check(host.system)

    assert_back(host)
    assert host.units["green"].tasks == 0


def test_a_slot_that_cannot_be_killed_keeps_the_host_pending(host):
    """
    Its traffic is away; the next check tries again.
    """
    armed(host)
    operator_dies(host)
    host.units["green"].stops = "immortal"

    assert "does not end" in left_to_do(host).what
    assert host.system.proxy.weights == {"blue": 100, "green": 0}
    assert host.status().pending is not None
    host.units["green"].stops = "fast"

    check(host.system)

    assert_back(host)


def test_a_first_release_is_stopped(host):
    """
    Nothing served before, so nothing serves afterwards.
    """
    host.stage(V2, "v2")
    take(host)
    host.call(DeadmanArm("green", None))
    host.call(SlotStart("green", V2))
    host.call(TrafficSet({"green": 100}))
    operator_dies(host)

    check(host.system)

    assert host.system.proxy.weights == {"blue": 0, "green": 0}
    assert host.units["green"].active == "inactive"
    assert host.units["blue"].active == "inactive"
    assert host.status().went_back.release == "r1"


# -- HAProxy


def test_an_haproxy_that_is_down_is_started_without_the_change(host):
    """
    Its first weights are those of before the release already.
    """
    armed(host)
    operator_dies(host)
    proxy = host.system.proxy
    proxy.is_running = False
    starts, start = [], proxy.start

    def started(*args):
        start(*args)
        starts.append(proxy.weights)

    proxy.start = started

    check(host.system)

    assert starts == [{"blue": 100, "green": 0}]
    assert_back(host)


def test_an_haproxy_that_does_not_start_stops_nothing_else(host):
    """
    blue is started meanwhile; green keeps running, because it may have the traffic.
    """
    armed(host, 100)
    operator_dies(host)
    host.system.proxy.is_running = False
    host.system.units[HAPROXY_UNIT].starts = "hang"
    host.units["blue"].fail()

    assert "HAProxy does not answer" in left_to_do(host).what
    assert host.units["blue"].active != "failed"
    assert host.units["green"].active == "active"
    host.system.units[HAPROXY_UNIT].starts = "ready"

    check(host.system)

    assert_back(host)


def test_an_haproxy_that_restarts_is_waited_for(host):
    """
    It answers again a second later.
    """
    armed(host)
    operator_dies(host)
    host.system.proxy.is_running = False
    host.system.units[HAPROXY_UNIT].starts = "hang"  # a start of ours adds nothing
    back_s = host.clock.steady + 1

    def restarted():
        if not host.system.proxy.is_running and host.clock.steady >= back_s:
            text = host.layout.haproxy_state.read_text()
            host.system.proxy.start(text, host.clock.steady)

    host.clock.on_sleep = restarted

    check(host.system)

    assert_back(host)


def test_an_haproxy_that_runs_without_its_socket_is_restarted(host):
    """
    A start of what runs does nothing: the host would keep the split for ever.
    """
    armed(host)
    operator_dies(host)
    host.system.proxy.has_socket = False

    check(host.system)

    assert_back(host)
    verbs = [c[1] for c in host.system.calls if c[0] == "systemctl" and c[-1] == HAPROXY_UNIT]
    assert verbs.count("restart") == 1


def test_an_haproxy_that_is_slow_to_start_is_not_restarted(host):
    """
    Control: it would never come to the end of its start.
    """
    armed(host)
    operator_dies(host)
    host.system.proxy.is_running = False
    host.system.units[HAPROXY_UNIT].fail()
    host.system.units[HAPROXY_UNIT].starts = "hang"

    assert "HAProxy does not answer" in left_to_do(host).what

    assert not any(c[:2] == ["systemctl", "restart"] for c in host.system.calls)


# -- operators


def test_an_operator_who_takes_over_in_the_middle_gets_the_host(host):
    """
    The check stops at its next change.
    """
    armed(host, 100)
    operator_dies(host)
    host.system.runtimes["blue"].is_ready = False
    host.clock.on_sleep = lambda: take(host, EPOCH + 1)

    assert "its operator has the host" in check(host.system)

    assert host.system.proxy.weights["green"] == 100
    assert host.units["green"].enabled
    assert host.status().pending is not None


@pytest.mark.parametrize("starts", ["slow", "hang"])
def test_a_start_that_waits_while_the_host_goes_back_undoes_nothing(host, starts):
    """
    The operator's lease ends during its slot.start: green is neither enabled nor running.
    """
    armed(host, 0)
    host.call(SlotStop("green"))
    take(host)
    host.units["green"].starts = starts
    host.units["green"].looks = 10**6
    fired = []

    def dies():
        if not fired:
            fired.append(host.clock.pass_s(TTL_S + 1))
            check(host.system)

    host.clock.on_sleep = dies
    error = host.refusal(SlotStart("green", V2, 60))

    assert fired
    assert error.kind == "LeaseLost"
    assert_back(host)


def test_without_the_fence_a_late_start_would_run(host):
    """
    Negative control: the same start under a lease that goes on leaves green running.
    """
    armed(host, 0)
    host.call(SlotStop("green"))
    take(host)
    host.units["green"].starts = "slow"
    host.clock.on_sleep = lambda: check(host.system)

    host.call(SlotStart("green", V2, 60))

    assert (host.units["green"].active, host.units["green"].enabled) == ("active", True)


@pytest.mark.parametrize(
    "request_",
    [
        SlotStart("green", V2),
        TrafficSet({"green": 100, "blue": 0}),
        TrafficDrain("blue"),
        DeadmanArm("green", "blue"),
        JournalAppend("note"),
    ],
    ids=lambda request: request.VERB,
)
def test_late_commands_of_the_old_operator_are_refused(host, request_):
    armed(host)
    operator_dies(host)
    check(host.system)

    assert host.refusal(request_).kind == "LeaseLost"
    assert_back(host)


def test_a_verb_that_holds_the_lock_is_not_disturbed(host):
    """
    The check gives up after a while and comes again.
    """
    armed(host)
    operator_dies(host)
    before = state_of(host)
    host.system.use_real("lock")
    with host.layout.lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is locked" in left_to_do(host).what
        assert state_of(host) == before

    check(host.system)

    assert_back(host)


def test_two_checks_at_once_do_it_once(host):
    """
    By hand beside the timer's.
    """
    armed(host)
    operator_dies(host)
    said = []
    threads = [threading.Thread(target=lambda: said.append(check(host.system))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert_back(host)
    assert any("taken back" in text for text in said)


# -- what fails


class Killed(BaseException):
    """
    Stands for SIGKILL, and for a power cut.
    """


def test_a_check_that_is_killed_anywhere_is_finished_by_the_next():
    """
    Before each command, and before each change of HAProxy.
    """
    kills = 0
    while True:
        with short_directory() as root:
            host = armed(TemporaryHost(root, FakeClock()), 100)
            operator_dies(host)
            if not killed_at(host, kills):
                break
            check(host.system)
            assert_back(host)
            steps = [(line["step"], line["phase"]) for line in host.journal()]
            assert steps.count((pending.GO_BACK, "intent")) == 1
            assert host.status().unfinished is None
        kills += 1
    assert kills > 20


def killed_at(host, number):
    """
    Run the check and kill it before step *number*; return whether it got that far.
    """
    left = [number]

    def step(*_):
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    ask = host.system.proxy.ask

    def asked(*args):
        step()
        return ask(*args)

    host.system.before, host.system.proxy.ask = step, asked
    try:
        check(host.system)
    except Killed:
        return True
    finally:
        host.system.before, host.system.proxy.ask = lambda _: None, ask
    return False


@pytest.mark.parametrize("step", ["enable", "disable", "start", "stop", "show"])
def test_a_systemd_that_fails_at_one_thing_stops_no_other(host, step):
    """
    The traffic is back, and the rest follows with the next check.
    """
    armed(host)
    operator_dies(host)
    host.units["blue"].enabled = False
    run = host.system.run

    def failing(argv, **more):
        if argv[:2] == ["systemctl", step]:
            raise HostError("CommandFailed", "systemctl", "timed out", "wait")
        return run(argv, **more)

    host.system.run = failing
    with contextlib.suppress(HostError):
        check(host.system)
    assert host.system.proxy.weights == {"blue": 100, "green": 0}
    host.system.run = run

    with contextlib.suppress(HostError):
        check(host.system)

    assert_back(host)


def test_the_journal_has_the_way_back(host):
    armed(host)
    operator_dies(host)
    check(host.system)

    intent, result = [line for line in host.journal() if line["step"] == pending.GO_BACK]

    assert (intent["phase"], result["phase"], result["ok"]) == ("intent", "result", True)
    assert (intent["release"], intent["actor"], intent["fence"]) == ("r1", way_back.ACTOR, None)


def test_a_journal_that_cannot_be_written_stops_nothing(host, monkeypatch):
    """
    Damaged, unreadable, or any other defect of it.
    """
    armed(host)
    operator_dies(host)

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Journal, "append", broken)

    check(host.system)

    assert_back(host)


def test_a_full_disk_stops_nothing(disk):  # noqa: F811
    """
    No byte is left, and no reserve either: journal, state file, and the record of the way back.
    """
    host = TemporaryHost(disk)
    host.layout.etc.mkdir(parents=True)
    host.layout.host_config.write_text("{}")
    lay(host)
    armed(host, 100)
    operator_dies(host)
    for path in host.layout.reserves:
        path.unlink()
    fill(disk)
    with pytest.raises(OSError, match="No space"):  # negative control
        (host.layout.state / "more").write_bytes(b"x")

    check(host.system)

    assert_back(host)


def test_a_read_only_disk_still_moves_the_traffic(disk):  # noqa: F811
    """
    As after an error of the disk.  The end is noted once it can be written.
    """
    host = armed(TemporaryHost(disk), 100)
    operator_dies(host)
    remount(disk, "ro")
    with contextlib.suppress(OSError):
        check(host.system)

    assert host.system.proxy.weights == {"blue": 100, "green": 0}
    assert (host.units["green"].active, host.units["green"].enabled) == ("inactive", False)
    assert host.layout.pending.exists()
    remount(disk, "rw")

    check(host.system)

    assert_back(host)


def remount(path, option):
    subprocess.run(["mount", "-o", f"remount,{option}", str(path)], check=True)


def test_a_host_is_armed_on_a_full_disk(disk):  # noqa: F811
    """
    By space that is kept for it.
    """
    host = TemporaryHost(disk)
    host.layout.etc.mkdir(parents=True)
    host.layout.host_config.write_text("{}")
    lay(host)
    take(host)
    fill(disk)

    host.call(DeadmanArm("green", "blue"))

    assert host.status().pending.to_slot == "green"
    assert not reserve.is_whole(host.layout)


@pytest.mark.parametrize("damage", PLACES)
def test_a_damaged_file_is_written_again_from_the_journal(host, damage):
    """
    What the operator armed is there too, on disk before the first effect.
    """
    armed(host)
    put(host.layout.pending, damage)
    operator_dies(host)

    assert "taken back" in check(host.system)

    assert_back(host)
    assert host.status().went_back.release == "r1"


@pytest.mark.parametrize("damage", PLACES)
def test_a_reboot_with_a_damaged_file_never_starts_with_the_change(host, damage):
    """
    A power cut is what damages files.
    """
    armed(host, 100)
    put(host.layout.pending, damage)

    assert "not confirmed" in booted(host)

    assert host.units["green"].active == "inactive"
    assert "taken back" in check(host.system)
    assert_back(host)


@pytest.mark.parametrize("damage", PLACES)
def test_a_damaged_file_without_a_change_is_put_aside(host, damage):
    """
    A whole journal has nothing pending: the file keeps nothing back, and stops nothing.
    """
    take(host)
    operator_dies(host)
    put(host.layout.pending, damage)

    assert "put aside as pending.json.damaged" in check(host.system)

    assert check(host.system) == "nothing is pending"
    assert host.status().is_pending_aside
    assert not host.status().is_pending_damaged
    [repair] = [r for r in Journal(host.system).read()[0] if r.step == pending.REPAIR]
    assert repair.args == {"done": "put aside", "as": "pending.json.damaged"}
    take(host)
    host.call(DeadmanArm("green", "blue"))


def shorten(journal, damage):
    lines = journal.read_bytes().splitlines(keepends=True)
    match damage:
        case "empty":
            journal.write_bytes(b"")
        case "lost":
            journal.unlink()
        case "without its first lines":
            number = next(n for n, line in enumerate(lines) if b"deadman.arm" in line)
            journal.write_bytes(b"".join(lines[number + 1 :]))
        case "without its last lines":
            journal.write_bytes(lines[0])
        case "without the line that armed it":
            journal.write_bytes(b"".join(line for line in lines if b"deadman.arm" not in line))


SHORTENED = [
    "empty", "lost", "without its first lines", "without its last lines",
    "without the line that armed it",
]  # fmt: skip


@pytest.mark.parametrize("damage", SHORTENED)
def test_a_journal_that_lacks_lines_says_nothing_of_a_damaged_file(host, damage):
    """
    The change is not confirmed: the file is kept, and named.
    """
    armed(host)
    shorten(host.layout.journal, damage)
    put(host.layout.pending, "{torn")
    operator_dies(host)

    assert "lines are damaged or missing" in left_to_do(host).why

    assert host.status().is_pending_damaged
    assert not host.status().is_pending_aside


@pytest.mark.parametrize("verb", [DeadmanConfirm(V2, "v2"), DeadmanDisarm()])
def test_only_arming_puts_a_file_aside_that_nothing_tells(host, verb):
    """
    It writes another one at once; after a confirmation nothing would be left to take back.
    """
    armed(host, 0)
    put(host.layout.pending, "{torn")
    with host.layout.journal.open("ab") as journal:
        journal.write(b"{damaged}\n")

    assert host.refusal(verb).what == f"{host.layout.pending} is damaged"

    assert host.status().is_pending_damaged
    host.call(DeadmanArm("green", "blue"))
    assert host.status().pending.to_slot == "green"


def test_the_journal_has_a_way_before_its_file(host, monkeypatch):
    """
    A call that dies between the two and is repeated leaves none that the journal does not have.
    """
    serve(host.system, V1, "v1", "blue")
    take(host)

    def dies(*_):
        raise OSError(errno.EIO, "died")

    with monkeypatch.context() as patch:
        patch.setattr(pending, "write", dies)
        with contextlib.suppress(OSError, HostError):
            host.call(DeadmanArm("green", "blue"))

    assert b"deadman.arm" in host.layout.journal.read_bytes()
    assert pending.read(host.system) is None


def test_a_change_that_is_over_is_not_taken_back_from_the_journal(host):
    """
    The journal says so, or the files that change places before it does.
    """
    armed(host, 0)
    host.layout.pending.replace(host.layout.confirmed)  # and the line of the journal is missing
    host.layout.pending.write_text("{torn")

    assert "put aside" in check(host.system)
    assert host.units["green"].active == "active"


@pytest.mark.parametrize("damage", PLACES)
def test_a_damaged_file_beside_a_damaged_journal_is_named(host, damage):
    """
    The host changes nothing then; its operator may roll back all the same.
    """
    armed(host)
    put(host.layout.pending, damage)
    with host.layout.journal.open("ab") as journal:
        journal.write(b"{damaged}\n")
    operator_dies(host)
    before = state_of(host)

    problem = left_to_do(host)

    assert (problem.what, problem.fix[:30]) == (
        f"{host.layout.pending} is damaged", "inv status, then inv rollback;",
    )  # fmt: skip
    assert state_of(host) == before
    take(host)  # a rollback needs nothing settled
    host.call(DeadmanArm("green", "blue"))
    assert host.status().pending.to_slot == "green"
    operator_dies(host)
    assert "taken back" in check(host.system)
    assert_back(host)


def test_a_directory_where_the_end_is_written_stops_no_way_back(host):
    """
    Its content would keep the host pending for ever.
    """
    armed(host)
    (host.layout.went_back / "content").mkdir(parents=True)
    operator_dies(host)

    assert "taken back" in check(host.system)
    assert_back(host)


@pytest.mark.parametrize("ends_s", [1e308, float("inf"), 10_000_000.0])
def test_a_damaged_lease_keeps_no_host(host, ends_s):
    """
    One that would never end.
    """
    armed(host)
    lease = json.loads(host.layout.lease.read_text())
    host.layout.lease.write_text(json.dumps(lease | {"expires_steady_s": ends_s}))
    assert "this host has no lease" in host.refusal(TrafficSet({"blue": 100, "green": 0})).why
    assert Leases(host.system).ended_s() == host.system.steady_s()
    check(host.system)
    assert_back(host)


@pytest.mark.parametrize("damage", ["directory", "loop"])
def test_a_lease_that_cannot_be_read_keeps_no_host(host, damage):
    """
    Whatever stands in its place.
    """
    armed(host)
    host.layout.lease.unlink()
    if damage == "directory":
        host.layout.lease.mkdir()
    else:
        host.layout.lease.symlink_to(host.layout.lease.name)
    check(host.system)
    assert_back(host)


READ = [
    "lease", "journal", "went_back", "confirmed", "deadman_test", "deadman_tested", "desired",
    "host_config", "haproxy_state",
]  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("damage", ["directory", "pipe"])
@pytest.mark.parametrize("name", READ)
def test_what_stands_in_the_place_of_a_file_stops_no_way_back(host, name, damage):
    """
    Who reads a pipe that nobody writes to waits for ever.
    """
    armed(host)
    path = getattr(host.layout, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, damage)
    operator_dies(host)

    assert "taken back" in check(host.system)

    if name == "journal":
        assert host.status().journal_damaged
        assert host.refusal(LeaseAcquire("ann@desk:1", TTL_S)).kind == "CommandFailed"
    else:
        assert_back(host)
        take(host, EPOCH + 1)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [*READ, "pending"])
def test_a_boot_waits_for_no_pipe(host, name):
    armed(host, 100)
    path = getattr(host.layout, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, "pipe")

    assert "not confirmed" in booted(host)

    assert host.units["green"].active == "inactive"
    assert "taken back" in check(host.system)


@pytest.mark.timeout(20)
def test_a_lease_is_given_where_a_pipe_stands_in_the_place_of_a_reserve(host):
    host.layout.host_config.parent.mkdir(parents=True, exist_ok=True)
    host.layout.host_config.write_text("{}")
    for path in host.layout.reserves:
        put(path, "pipe")

    take(host)

    assert not host.status().is_reserve_whole


@pytest.mark.parametrize("end", ["confirmed", "taken back"])
def test_a_change_that_is_begun_again_is_not_the_one_that_is_over(host, end):
    """
    By the same operator under the same epoch: a damaged file was put aside, and the change stayed.
    """
    armed(host, 100)
    if end == "confirmed":
        host.call(DeadmanConfirm(V2, "v2"))
    else:
        operator_dies(host)
        check(host.system)
    take(host)
    host.call(DeadmanArm("green", "blue"))
    put(host.layout.pending, "{torn")
    operator_dies(host)

    assert "taken back" in check(host.system)
    assert_back(host)


def test_a_file_that_is_renamed_while_it_is_looked_at_is_not_damaged(host, monkeypatch):
    """
    As by a confirmation beside a status, which reads without the lock.
    """
    armed(host)
    plain = pending.read_plain

    def renamed(path, *more):
        content = plain(path, *more)
        path.rename(host.layout.confirmed)
        return content

    monkeypatch.setattr(pending, "read_plain", renamed)
    assert not pending.is_damaged(host.system)
    assert not pending.is_damaged(host.system)


# -- boot


@pytest.mark.parametrize("share", [10, 100])
def test_a_reboot_never_starts_with_the_change(host, share):
    """
    HAProxy's first weights are those of before, and green does not start.
    """
    armed(host, share)

    assert "blue serves" in booted(host)

    assert host.system.proxy.weights == {"blue": 100, "green": 0}
    assert host.units["green"].active == "inactive"
    assert not host.units["green"].enabled
    assert host.status().pending.left_s == 0
    assert check(host.system)
    assert_back(host)


def test_without_the_unit_of_the_boot_it_would(host, monkeypatch):
    """
    Negative control: HAProxy's state file has the weights of the release, and green starts.
    """
    armed(host)
    monkeypatch.setattr("tests.unit.deploy.host.deadman.builders.boot", lambda _: "")

    booted(host)

    assert host.system.proxy.weights == {"blue": 90, "green": 10}
    assert host.units["green"].active == "activating"


def test_a_reboot_of_a_host_without_a_change_changes_nothing(host):
    armed(host, 100)
    host.layout.pending.unlink()

    assert booted(host) == "nothing is pending of an earlier boot"

    assert host.system.proxy.weights == {"blue": 0, "green": 100}
    assert host.units["green"].active == "activating"


def test_the_unit_of_the_boot_by_hand_changes_nothing(host):
    """
    In the boot in which the change was begun.
    """
    armed(host)
    before = state_of(host)

    assert way_back.boot(host.system) == "nothing is pending of an earlier boot"

    assert state_of(host) == before


@pytest.mark.parametrize("text", [None, "", "garbage\n"])
def test_a_boot_goes_on_without_a_usable_state_file(host, text):
    """
    The slots are right in any case; HAProxy starts with both in maint, and the check ends that.
    """
    armed(host)
    host.layout.haproxy_state.unlink()
    if text is not None:
        host.layout.haproxy_state.write_text(text)
    host.system.boot = "another"
    with contextlib.suppress(ValueError):
        way_back.boot(host.system)
    assert not host.units["green"].enabled

    host.system.proxy.start(None, host.clock.steady)
    check(host.system)

    assert_back(host)


def test_a_first_release_does_not_survive_a_reboot(host):
    host.stage(V2, "v2")
    take(host)
    host.call(DeadmanArm("green", None))
    host.call(SlotStart("green", V2))
    host.call(TrafficSet({"green": 100}))

    assert "no slot serves" in booted(host)

    assert host.system.proxy.weights == {"blue": 0, "green": 0}
    assert host.units["green"].active == "inactive"
    assert host.units["blue"].active == "inactive"


# -- a real HAProxy


def test_a_real_haproxy_starts_without_the_change(leased, proxy):
    """
    From the state file that the unit of the boot rewrote: blue at once, green in maint.
    """
    leased.layout.slot_links.mkdir(exist_ok=True)
    for slot, bundle, version in (("blue", V1, "v1"), ("green", V2, "v2")):
        leased.stage(bundle, version)
        leased.call(SlotStart(slot, bundle))
    leased.call(TrafficSet({"blue": 100}))
    leased.call(DeadmanArm("green", "blue"))
    leased.call(TrafficSet({"blue": 0, "green": 100}))
    leased.call(TrafficDrain("blue"))
    proxy.stop()
    leased.system.boot = "another"
    way_back.boot(leased.system)

    proxy.start()

    assert proxy.share(10) == {"blue": 10}
    servers = proxy.control.servers()
    assert {s: (servers[s].admin, servers[s].weight) for s in servers} == {
        "blue": ("ready", 100), "green": ("maint", 0),
    }  # fmt: skip


def test_a_real_haproxy_goes_back(leased, proxy):
    """
    Under keep-alive requests, from a slot that was drained to maint.
    """
    leased.layout.slot_links.mkdir(exist_ok=True)
    for slot, bundle, version in (("blue", V1, "v1"), ("green", V2, "v2")):
        leased.stage(bundle, version)
        leased.call(SlotStart(slot, bundle))
    leased.call(TrafficSet({"blue": 100}))
    leased.call(DeadmanArm("green", "blue"))
    leased.call(TrafficSet({"blue": 0, "green": 100}))
    leased.call(TrafficDrain("blue"))
    assert proxy.share(10) == {"green": 10}
    leased.call(LeaseRelease())

    check(leased.system)

    assert proxy.share(10) == {"blue": 10}
    assert leased.status().went_back.release == "r1"


# -- the program


def test_the_units_verbs_are_reached_by_name_alone(host, capsys):
    """
    They read no document, print what they did, and exit with 1 while something is left to do.
    """
    assert {"deadman.check", "deadman.boot", "torch.compare"} == set(OWN)
    for name in OWN:
        answer = json.loads(program.handle(host.system, name, ""))
        assert "no verb" in answer["error"]["what"]
        assert run_own(host.system, name) == 0
    host.layout.pending.write_text("{torn")
    host.layout.journal.write_bytes(b"{damaged}\n")
    capsys.readouterr()

    assert run_own(host.system, "deadman.check") == 1

    assert "damaged" in capsys.readouterr().out


def test_an_error_of_the_disk_is_left_to_do(host, capsys, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/lib/slipway/x")

    monkeypatch.setattr(way_back, "check", full)

    assert run_own(host.system, "deadman.check") == 1
    assert "is full" in capsys.readouterr().out
