"""
Hooks as real processes: what they get, what stops a release, and that none delays a way back.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.errors import CommandFailed, LeaseLost, PreconditionError
from deploy.inventory.schema import Hook, Phase
from deploy.release import hook_process, hooks
from deploy.release.hook_process import HookResult
from deploy.release.hooks import Hooks

ROOT = Path(__file__).parents[4]
PLAN = {"version": "v2", "hosts": ["n1", "n2"]}
ENV = {"PATH": os.environ["PATH"], "HOME": "/home/ops", "SLIPWAY_API_TOKEN": "hunter2", "LD_X": "1"}


class FixedClock:
    def utc(self):
        return datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def heeded_signals():
    """
    As on a terminal: nohup, and a shell's background, ignore them.
    """
    handlers = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def start(tmp_path):
    """
    Return a function that makes Hooks of (when, phase, script) entries; its `events` are public.
    """
    made = []

    def make(*entries, timeout=120.0, env=ENV):
        (tmp_path / "hooks").mkdir(exist_ok=True)
        chosen = []
        for number, (when, phase, script, *words) in enumerate(entries):
            name = f"hooks/h{number}"
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
            chosen.append(Hook(when=when, phase=phase, run=(name, *words), timeout=f"{timeout}s"))
        events = []
        made.append(
            Hooks(
                chosen,
                root=tmp_path,
                release="r1",
                fleet="lab",
                env=env,
                report=events.append,
                clock=FixedClock(),
            )
        )
        made[-1].events = events
        return made[-1]

    yield make
    for one in made:
        one.going_back()
        one.close()


def names(of):
    return [event.name for event in of.events]


def wait_for(condition, what):
    until_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.01)


def is_alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def took_s(action):
    began_s = time.monotonic()
    action()
    return time.monotonic() - began_s


# A busy machine may take this long for what waits for nothing.  A hook that runs takes longer.
AT_ONCE_S = 30.0


def test_a_hook_gets_the_plan_and_little_else(start, tmp_path):
    """
    JSON on standard input; PATH, HOME and the names of the release; no secret of the operator.
    """
    on = start(("before", "promote", "cat >in; env >env; pwd >cwd; echo $# $1 >words", "a b;$X"))
    on.before(Phase.PROMOTE, PLAN)
    assert json.loads((tmp_path / "in").read_text()) == {
        "release": "r1",
        "fleet": "lab",
        "when": "before",
        "phase": "promote",
        "plan": PLAN,
    }
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert {name: env[name] for name in env if name not in ("PWD", "_", "SHLVL", "OLDPWD")} == {
        "PATH": ENV["PATH"],
        "HOME": "/home/ops",
        "LC_ALL": "C.UTF-8",
        "SLIPWAY_RELEASE": "r1",
        "SLIPWAY_FLEET": "lab",
        "SLIPWAY_PHASE": "promote",
        "SLIPWAY_WHEN": "before",
    }
    assert (tmp_path / "cwd").read_text().strip() == str(tmp_path)
    assert (tmp_path / "words").read_text() == "1 a b;$X\n"
    assert names(on) == ["hook.started", "hook.passed"]


def test_only_the_hooks_of_the_phase_run_in_their_order(start, tmp_path):
    on = start(
        ("before", "promote", "echo 1 >>log"),
        ("before", "stage", "echo no >>log"),
        ("after", "promote", "echo no >>log"),
        ("before", "promote", "echo 2 >>log"),
    )
    on.before(Phase.PROMOTE, PLAN)
    assert (tmp_path / "log").read_text() == "1\n2\n"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo frozen until Monday >&2; exit 3", 'exit status 3; it says: "frozen until Monday"'),
        ("kill -9 $$", "killed by SIGKILL"),
        ("exec /no/such/interpreter", "exit status 127"),
    ],
)
def test_a_failing_hook_before_a_phase_stops_it(start, tmp_path, script, why):
    """
    The error says what the hook said, and the hooks after it do not run.
    """
    on = start(("before", "promote", script), ("before", "promote", "touch second"))
    with pytest.raises(CommandFailed) as failed:
        on.before(Phase.PROMOTE, PLAN)
    assert "hooks/h0 before promote" in failed.value.what
    assert why in failed.value.why
    assert not (tmp_path / "second").exists()
    assert names(on) == ["hook.started", "hook.failed"]


def test_a_program_that_cannot_be_started_is_a_failure(start, tmp_path):
    on = start(("before", "stage", "true"))
    (tmp_path / "hooks/h0").write_text("#!/no/such/interpreter\n")
    with pytest.raises(CommandFailed, match="hooks/h0 before stage") as failed:
        on.before(Phase.STAGE, PLAN)
    assert "No such file" in failed.value.why


def test_an_unknown_exit_status_is_a_failure(start):
    """
    With SIGCHLD ignored, as some CI systems do, subprocess reports status 0 for every program.
    """
    on = start(("before", "stage", "exit 3"))
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(CommandFailed) as failed:
            on.before(Phase.STAGE, PLAN)
    finally:
        signal.signal(signal.SIGCHLD, previous)
    assert "SIGCHLD" in failed.value.why


def test_a_failing_hook_after_a_phase_is_only_reported(start, tmp_path):
    """
    `after` does not wait, the other hooks still run, and the next phase begins.
    """
    on = start(
        ("after", "canary", "while ! test -e go; do sleep 0.05; done; exit 1"),
        ("after", "canary", "touch other"),
        ("before", "promote", "test -e other"),
    )
    on.after(Phase.CANARY, PLAN)
    (tmp_path / "go").touch()
    on.before(Phase.PROMOTE, PLAN)  # waits for those before it
    assert names(on) == [
        "hook.started",
        "hook.failed",
        "hook.started",
        "hook.passed",
        "hook.started",
        "hook.passed",
    ]


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000",
        "trap '' TERM; while :; do sleep 0.1; done",
        "trap '' TERM; (trap '' TERM; sleep 1000) & sleep 1000 & wait",
        "yes",  # fills its pipe
        "exec </dev/null; yes & yes & wait",
        "kill -STOP $$",
    ],
)
def test_a_hook_has_a_deadline(start, tmp_path, monkeypatch, script):
    """
    Also where it ignores SIGTERM, forks, prints without end or stops itself.
    """
    monkeypatch.setattr(hook_process, "time", TimeSince(tmp_path / "pid"))
    monkeypatch.setattr(hook_process, "_TERM_S", 0.3)
    on = start(("before", "promote", f"{TELL}; {script}"), timeout=0.5)
    with pytest.raises(CommandFailed) as failed:
        on.before(Phase.PROMOTE, {"much": "x" * (1 << 20)})
    assert hook_process.time.monotonic() < AT_ONCE_S
    assert "did not end within 0.5 s" in failed.value.why
    wait_for(lambda: not group_members(on._root), "a child is left")
    assert not is_alive(int((on._root / "pid").read_text()))


class TimeSince:
    """
    Stands for the module `time`: its clock stays at 0 until the file *path* exists.

    So a hook has its whole time also where a busy machine starts it late.
    """

    sleep = staticmethod(time.sleep)

    def __init__(self, path):
        self._path, self._began_s = path, None

    def monotonic(self):
        if self._began_s is None:
            if not self._path.exists():
                return 0.0
            self._began_s = time.monotonic()
        return time.monotonic() - self._began_s


# The guard leads the group of a hook.
TELL = 'cut -d" " -f5 /proc/$$/stat >group; echo $$ >pid.part; mv pid.part pid'


def group_members(folder):
    """
    Return the living processes of the hook's process group, which TELL wrote to *folder*.
    """
    group = int((folder / "group").read_text())
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            members.append(int(stat.parent.name))
    return members


@pytest.mark.parametrize("streams", ["", "</dev/null >/dev/null 2>&1"])
def test_children_in_the_background_end_with_the_hook(start, tmp_path, streams):
    """
    Whether or not a child holds the output open: it is not waited for, and is killed.
    """
    on = start(("before", "stage", f"sleep 1000 {streams} & echo $! >pid; exit 0"))
    assert took_s(lambda: on.before(Phase.STAGE, PLAN)) < AT_ONCE_S
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_alive(pid), "a child is left")


def test_a_child_that_left_the_group_holds_up_nobody(start, tmp_path):
    """
    It has a session of its own and writes to the hook's output without end.
    """
    wait = "while ! test -e pid; do sleep 0.05; done"
    child = "echo $$ >pid.part; mv pid.part pid; exec yes"
    on = start(("before", "stage", f"setsid sh -c '{child}' & {wait}; exit 0"))
    try:
        assert took_s(lambda: on.before(Phase.STAGE, PLAN)) < AT_ONCE_S
    finally:
        pid = int((tmp_path / "pid").read_text())
        wait_for(lambda: not is_alive(pid), "it writes to a pipe that nobody reads")


def test_the_end_of_a_long_output_is_kept(start):
    """
    Memory is bounded, and what is shown is escaped by those that print it.
    """
    script = "head -c 50000000 /dev/zero | tr '\\0' x; printf '\\033[2Jlast words'; exit 1"
    on = start(("before", "stage", script))
    with pytest.raises(CommandFailed) as failed:
        on.before(Phase.STAGE, PLAN)
    assert failed.value.why.endswith('\\x1b[2Jlast words"')
    assert len(failed.value.why) < 3000


STUBBORN = f"trap '' TERM HUP INT; {TELL}; (trap '' TERM; yes) & while :; do sleep 0.1; done"


def test_a_way_back_waits_for_no_hook(start, tmp_path):
    """
    A hook that never ends runs while the release goes back: it is killed at once.
    """
    on = start(
        ("before", "promote", STUBBORN),
        ("after", "start", "touch late"),
        ("before", "retire", "sleep 100; touch late"),
        timeout=1000.0,
    )
    raised = []

    def forward():
        try:
            on.before(Phase.PROMOTE, PLAN)
        except CommandFailed as error:
            raised.append(error)

    thread = threading.Thread(target=forward)
    thread.start()
    wait_for((tmp_path / "pid").exists, "the hook did not start")
    assert group_members(tmp_path), "negative control"
    on.after(Phase.START, PLAN)
    on.going_back()
    thread.join(60.0)
    assert len(raised) == 1  # the phase does not begin
    wait_for(lambda: not group_members(tmp_path), "still runs")
    assert took_s(lambda: on.before(Phase.RETIRE, PLAN)) < AT_ONCE_S
    on.close()
    wait_for(lambda: len(on.events) == 3, "the hook after `start` has no end")
    assert not (tmp_path / "late").exists()
    assert names(on) == ["hook.started", "hook.failed", "hook.skipped"]


def test_a_way_back_does_not_wait_until_a_hook_has_been_killed(start, monkeypatch):
    """
    A process in uninterruptible sleep cannot be killed.
    """
    began, may_end, was_waited_for = threading.Event(), threading.Event(), []

    def run_program(*_, **__):
        began.set()
        was_waited_for.append(not may_end.wait(60.0))
        return HookResult("was ended", "", 0.0)

    monkeypatch.setattr(hooks, "run_program", run_program)
    on = start(("after", "start", "true"))
    on.after(Phase.START, PLAN)
    assert began.wait(60.0)
    on.going_back()
    may_end.set()
    on.close()
    assert was_waited_for == [False]


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.is_way_back])
def test_hooks_after_a_way_back_have_a_bounded_time(start, tmp_path, monkeypatch, phase):
    """
    `after` returns at once; the end of the command waits for them, all together, at most 30 s.
    """
    monkeypatch.setattr(hooks, "WAY_BACK_S", 0.7)
    on = start(("after", phase, "cat >in"), *[("after", phase, STUBBORN)] * 3, timeout=1000.0)
    on.going_back()
    on.after(phase, PLAN)  # the hooks never end
    wait_for((tmp_path / "pid").exists, "the second hook did not start")
    assert 0.5 < took_s(on.close) < AT_ONCE_S
    assert json.loads((tmp_path / "in").read_text())["phase"] == str(phase)
    wait_for(lambda: not group_members(tmp_path), "the hook still runs")
    wait_for(lambda: names(on).count("hook.skipped") == 2, "two did not start")


def test_the_end_waits_for_hooks_that_end(start, tmp_path):
    """
    A release that went forward, and a way back.
    """
    for is_back in (False, True):
        phase = Phase.ROLLBACK if is_back else Phase.RELEASE
        on = start(("after", phase, f"sleep 0.5; echo {is_back} >>done"))
        if is_back:
            on.going_back()
        on.after(phase, PLAN)
        on.close()
        on.close()
    assert (tmp_path / "done").read_text() == "False\nTrue\n"


def test_what_is_watched_ends_the_wait(start, tmp_path):
    """
    A lease that is lost while a hook runs.
    """
    on = start(("before", "promote", STUBBORN), timeout=1000.0)

    def watch():
        if (tmp_path / "pid").exists():
            raise LeaseLost("lost", why="w", fix="f")

    with pytest.raises(LeaseLost):
        on.before(Phase.PROMOTE, PLAN, watch=watch)
    wait_for(lambda: not group_members(tmp_path), "the hook still runs")


def test_an_interruption_ends_the_hook(start, tmp_path):
    """
    Ctrl-C goes to this process alone: hooks have a session of their own.
    """
    on = start(("before", "promote", STUBBORN), timeout=1000.0)
    waits = threading.Event()

    def interrupt():
        waits.wait(60.0)
        wait_for((tmp_path / "pid").exists, "the hook did not start")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        on.before(Phase.PROMOTE, PLAN, watch=waits.set)
    wait_for(lambda: not group_members(tmp_path), "the hook still runs")


def test_an_error_of_ours_does_not_hold_up_a_phase(start, monkeypatch):
    on = start(("before", "promote", "true"), ("before", "stage", "true"))
    real = hooks.run_program
    monkeypatch.setattr(hooks, "run_program", lambda *_, **__: 1 / 0)
    with pytest.raises(Exception, match="internal error"):
        on.before(Phase.PROMOTE, PLAN)
    monkeypatch.setattr(hooks, "run_program", real)
    on.before(Phase.STAGE, PLAN)  # the thread goes on


def test_without_hooks_nothing_runs(start):
    on = start()
    on.before(Phase.STAGE, PLAN)
    on.after(Phase.RELEASE, PLAN)
    on.close()
    assert on._worker is None


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.chmod(0o644), "not an executable file"),
        (lambda path: path.chmod(0o757), "every user may change it"),
        (lambda path: (path.unlink(), path.mkdir()), "not an executable file"),
        (lambda path: (path.unlink(), path.symlink_to("/bin/sh")), "a link out of hooks/"),
        (lambda path: (path.unlink(), path.symlink_to("../elsewhere")), "a link out of hooks/"),
        (lambda path: (path.unlink(), path.symlink_to("h0")), "symbolic links"),
    ],
)
def test_a_program_is_checked_before_anything_is_touched(start, tmp_path, spoil, why):
    """
    A fleet file chooses among the hooks of the checkout, and no other program of this machine.
    """
    start(("before", "stage", "true"))  # negative control: as it is, it may run
    (tmp_path / "elsewhere").write_text("#!/bin/sh\n")
    (tmp_path / "elsewhere").chmod(0o755)
    spoil(tmp_path / "hooks/h0")
    with pytest.raises(PreconditionError) as refused:
        hooks.check_program(tmp_path, "hooks/h0")
    assert "hooks/h0" in refused.value.what
    assert why in refused.value.why


OPERATOR = """
import sys
from pathlib import Path
from deploy.release.hook_process import run_program
root = Path(sys.argv[1])
run_program([str(root / "hook")], stdin=b"", cwd=root, env={"PATH": "/usr/bin:/bin"},
            timeout_s=1000.0, is_cancelled=lambda: False)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_hook_ends_with_its_operator(tmp_path, number):
    """
    Its whole process group, also where the operator cannot clean up, and the hook ignores signals.
    """
    program = tmp_path / "hook"
    program.write_text(
        "#!/bin/sh\ntrap '' TERM HUP INT\nsleep 1000 &\necho $$ $! >pids.part\n"
        "mv pids.part pids\nwait\nsleep 1000\n"
    )
    program.chmod(0o755)
    operator = subprocess.Popen([sys.executable, "-c", OPERATOR, str(tmp_path)], cwd=ROOT)
    pids = []
    try:
        wait_for((tmp_path / "pids").exists, "the hook did not start")
        pids = list(map(int, (tmp_path / "pids").read_text().split()))
        assert all(map(is_alive, pids)), "negative control"

        operator.send_signal(number)
        operator.wait(60)

        wait_for(lambda: not any(map(is_alive, pids)), f"of {pids} some live on")
    finally:
        operator.kill()
        for pid in filter(is_alive, pids):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("kill -SEGV $$", "killed by SIGSEGV"),
        ("kill -KILL $$", "killed by SIGKILL"),
        ("exit 7", "exit status 7"),
        ("yes | head -n 1 >/dev/null", None),
        ("kill -HUP 0; sleep 5", "killed by SIGHUP"),
        ("kill -INT 0; sleep 5", "killed by SIGINT"),
        *(
            (f"trap '' {name}; kill -{name} 0; exit 3", "exit status 3")
            for name in ("HUP", "INT", "QUIT", "ABRT", "USR1", "ALRM")
        ),
    ],
)
def test_a_hook_ends_under_its_guard_as_it_does_alone(tmp_path, script, problem):
    program = tmp_path / "hook"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    result = hook_process.run_program(
        [str(program)], stdin=b"x" * (1 << 20), cwd=tmp_path, env=ENV, timeout_s=120.0,
        is_cancelled=lambda: False,
    )  # fmt: skip
    assert result.problem == problem
    assert list(tmp_path.iterdir()) == [program], "no core file"
