"""
Root on a host runs nothing that came in a bundle: every command line of the host program, of
`inv verify` and of provisioning is looked at.
"""

import ast
import re
import shutil
from pathlib import Path

import pytest

import deploy.host
from deploy.host import layout
from deploy.host.__main__ import HANDLERS
from deploy.host.bundle import sandbox, venv
from deploy.host.protocol import (
    REQUESTS,
    DeadmanArm,
    DeadmanConfirm,
    DeadmanDisarm,
    DoorSet,
    FactQuery,
    Golden,
    GoodRecord,
    GoodRollback,
    JournalAppend,
    JournalRead,
    LeaseRelease,
    LeaseRenew,
    Measure,
    PublicAsk,
    Reboot,
    Retire,
    Revive,
    SlotStart,
    SlotStop,
    StateRead,
    TrafficDrain,
    TrafficSet,
    VenvBuild,
    Wheel,
)
from tests.unit.deploy.bundle.builders import make_lock
from tests.unit.deploy.host.staged import send

PACKAGE = Path(deploy.host.__file__).parent
TESTINFRA = Path(__file__).parents[3] / "testinfra"
OF_BUNDLES = (
    *(layout.VENVS, layout.RELEASES, layout.MODELS, layout.SLOT_LINKS),
    *(layout.WHEELHOUSE, layout.INCOMING),
)
# Programs that run what an argument names.
INTERPRETERS = re.compile(
    r"(.*/)?(env|sh|bash|nice|timeout|xargs|python[0-9.]*|uv|pip[0-9.]*|systemd-run)"
)


def run_as_root(calls, root=""):
    """
    Return the command lines of *calls* that would run something of a bundle outside the sandbox.
    """
    wrong = []
    for argv in calls:
        others = {f"--uid={layout.BUILD_USER}", "--property=DynamicUser=yes"}
        if argv[0] == "systemd-run" and others & set(argv):
            continue
        words = [word.removeprefix(root) for word in argv]
        runs = words if INTERPRETERS.fullmatch(words[0]) else words[:1]
        if words[0].startswith((*OF_BUNDLES, layout.UV)) or any(
            path in word for word in runs for path in OF_BUNDLES
        ):
            wrong.append(argv)
    return wrong


def life(host, bundle, workshop):
    """
    Call every verb of the host program once, on a release from its staging to its end.
    """
    send(host, bundle, workshop)
    lock = make_lock(workshop.wheels, version="9.0")
    wheels = tuple(Wheel(w.file, w.sha256, w.size) for w in lock.wheels)
    shutil.copytree(workshop.wheels, host.layout.wheelhouse, dirs_exist_ok=True)
    digest, slot = bundle.digest, "green"
    for request in (
        VenvBuild(lock.text, lock.digest, lock.python, wheels),
        SlotStart(slot, digest),
        Golden(slot),
        TrafficSet({"green": 100, "blue": 0}),
        Measure(),
        FactQuery(packages=("haproxy",)),
        JournalAppend("note"),
        JournalRead(),
        StateRead(),
        DeadmanArm(slot, "blue"),
        DeadmanConfirm(digest, "v1"),
        DeadmanDisarm(),
        PublicAsk(slot, "v1"),
        GoodRecord(digest, "v1", slot),
        GoodRollback("r1"),
        Revive(),
        TrafficSet({"green": 0, "blue": 0}, force=True),
        TrafficDrain(slot),
        DoorSet(is_open=False),
        Reboot(host.system.boot_id()),
        SlotStop(slot),
        Retire(keep=1),
        LeaseRenew(30),
    ):
        host.call(request)
        yield request.VERB
    host.status()
    host.call(LeaseRelease())


def test_the_host_program_runs_nothing_of_a_bundle(provisioned, bundle, workshop):
    """
    Every command line, in a life of a release with every verb.
    """
    seen = {
        *life(provisioned, bundle, workshop),
        "state.write",  # needs an epoch; test_desired.py has it
        *("keys.read", "keys.write"),  # no part of a release; test_api_keys.py has them
        "python.place",  # of provisioning; bundle/test_interpreters.py has it
        "deadman.test",  # needs the timer; deadman/test_self_test.py has it
        "certificate.set",  # needs a certificate; test_certificate.py has it; it runs no program
        "challenge.set",  # for an ACME server; test_challenges.py has it; it runs no program
        *("stage.missing", "stage.commit", "status", "lease.acquire", "lease.release"),
    }
    assert seen == set(REQUESTS)
    assert len(HANDLERS) == len(REQUESTS)

    system = provisioned.system
    assert run_as_root(system.calls, str(provisioned.root)) == []
    # Control: it did run what came in the bundle, in the sandbox.
    programs = [argv[0].removeprefix(str(provisioned.root)) for argv in system.in_sandbox]
    assert programs.count(layout.UV) == 4
    assert sum(program.endswith("/venv/bin/python") for program in programs) == 2


def test_a_build_without_the_sandbox_would_be_noticed(provisioned, bundle, workshop, monkeypatch):
    """
    Negative control: the sandbox is replaced by a plain run.
    """

    def plainly(system, argv, *, timeout_s, writable, readable=(), env=None):
        system.real.add(argv[0])
        return system.run(argv, timeout_s=timeout_s, env=env)

    monkeypatch.setattr(venv, "sandboxed", plainly)

    send(provisioned, bundle, workshop)

    wrong = run_as_root(provisioned.system.calls, str(provisioned.root))
    assert [Path(argv[0]).name for argv in wrong] == ["uv", "uv", "python"]


@pytest.mark.parametrize(
    "argv",
    [
        [f"{layout.VENVS}/d/bin/python", "-c", "pass"],
        ["python3", f"{layout.RELEASES}/d/runtime/x.py"],
        ["sh", "-c", f"cd {layout.SLOT_LINKS}/blue && ./x"],
        ["env", "A=1", f"{layout.VENVS}/d/bin/pip"],
        [layout.UV, "pip", "check"],
        ["systemd-run", "--uid=root", f"{layout.VENVS}/d/bin/python"],
    ],
)
def test_the_walk_knows_ways_to_run_a_file(argv):
    """
    Negative control: by its name, by an interpreter, by a shell.
    """
    assert run_as_root([argv]) == [argv]


def test_only_the_sandbox_starts_processes_of_the_build_user():
    """
    One module builds that command line, and one starts any other program at all; a session is
    forked for each of its calls.
    """
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert [p.name for p, text in texts.items() if "systemd-run" in text] == ["sandbox.py"]
    starts = re.compile(
        r"\bsubprocess\.|\bos\.(exec|spawn|posix_spawn|system|popen|fork)|\bpty\.|"
        r"\bimport (runpy|multiprocessing)|(?<![.\w])(exec|eval|compile|__import__)\("
    )
    found = {p.name: starts.findall(text) for p, text in texts.items() if starts.search(text)}
    assert found.keys() == {"system.py", "session.py"}
    assert re.findall(r"os\.(exec|spawn|posix_spawn|system|popen|fork)|subprocess",
                      texts[PACKAGE / "session.py"]) == ["fork"]  # fmt: skip


def commands_of(source):
    """
    Return the text of every literal and f-string of *source* outside of docstrings.

    Expressions in f-strings become their own text in braces.
    """
    tree = ast.parse(source)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
             for part in ast.walk(node) if part is not node}  # fmt: skip
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inner | docstrings
        ):
            yield node.value


# Programs that a command of testinfra may name below the directories of bundles: they read.
READERS = {"cat", "find", "ls", "sha256sum", "stat"}
RUNS_IT = re.compile(r"/bin/python|\{python\}|layout\.UV|\buv\b|\bpip\b|compileall")


def risky(source):
    """
    Return what *source* of testinfra uses outside of `sandbox.command` to run files of a bundle.
    """
    tree = ast.parse(source)
    sandboxed = {
        id(part)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "sandbox.command"
        for part in ast.walk(call)
    }
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if id(node) not in sandboxed
        and (
            (isinstance(node, ast.Attribute) and node.attr == "UV")
            or (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and RUNS_IT.search(node.value) is not None
                and not node.value.startswith("\n")  # a docstring
            )
        )
    ]


def test_testinfra_runs_nothing_of_a_bundle_as_root():
    """
    Every command of tests/testinfra: what starts the Python of an environment does so in the
    sandbox, and what names a file of a bundle reads it.
    """
    commands = [
        (path.name, text)
        for path in TESTINFRA.glob("*.py")
        for text in commands_of(path.read_text())
        if " " in text
    ]
    assert len(commands) > 20
    for path in TESTINFRA.glob("*.py"):
        assert risky(path.read_text()) == [], path.name
    for name, text in commands:
        if re.search(r"\{(venv|layout\.(VENVS|SLOT_LINKS|RELEASES|MODELS))", text):
            assert text.split()[0] in READERS, (name, text)


@pytest.mark.parametrize(
    "text", ["{layout.UV} check --python x", "{venv}/bin/python -c pass", "uv pip check"]
)
def test_the_walk_over_testinfra_would_notice(text):
    """
    Negative control: the commands of earlier releases.
    """
    assert risky(f'root.run(f"{text}")')
    assert not risky(f'root.run(sandbox.command([f"{text}"]))')


def test_provisioning_runs_nothing_of_a_bundle():
    """
    Its commands come from resources: none names a program below the directories of bundles.
    """
    root = Path(__file__).parents[4] / "deploy" / "provision"
    for path in root.glob("*.py"):
        for text in commands_of(path.read_text()):
            assert " " not in text or not RUNS_IT.search(text), (path.name, text)


def test_the_controller_starts_the_host_program_isolated():
    """
    No module of the SSH user, of PYTHONPATH or of the current directory runs as root.
    """
    assert layout.HOST_COMMAND == ("/usr/bin/python3", "-I", layout.HOST_PROGRAM)
    for path in [*TESTINFRA.glob("*.py"), *(Path("deploy") / "transport").glob("*.py")]:
        assert "python3 {layout.HOST_PROGRAM}" not in path.read_text()


# -- the sandbox


def options_of(provisioned):
    [argv] = [argv for argv in provisioned.system.calls if argv[0] == "systemd-run"]
    return argv[1 : argv.index("--")]


def test_the_sandbox_has_no_network_no_rights_and_no_secrets(provisioned, tmp_path):
    """
    What systemd is asked for; tests/lab/test_hostile_bundle.py has what comes of it.
    """
    sandbox.sandboxed(
        provisioned.system, ["/bin/true"], timeout_s=7, writable=[tmp_path], env={"A": "b c"}
    )

    options = options_of(provisioned)
    properties = [o.removeprefix("--property=") for o in options if o.startswith("--property=")]
    assert f"--uid={layout.BUILD_USER}" in options
    assert "--setenv=A=b c" in options
    assert {
        "PrivateNetwork=yes", "NoNewPrivileges=yes", "CapabilityBoundingSet=",
        "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes",
        "KillMode=control-group", "RuntimeMaxSec=7", f"BindPaths={tmp_path}",
    } <= set(properties)  # fmt: skip
    [hidden] = [p for p in properties if p.startswith("InaccessiblePaths=")]
    assert {f"-{layout.ETC}", f"-{layout.STATE}"} <= set(hidden.partition("=")[2].split())
    assert [p for p in properties if p.startswith("BindPaths=")] == [f"BindPaths={tmp_path}"]


def test_a_process_that_is_left_over_stops_a_build(provisioned, bundle, workshop):
    """
    It could still write into what root is about to take over.
    """
    provisioned.system.left_running = [4711]

    with pytest.raises(deploy.host.protocol.HostError) as caught:
        send(provisioned, bundle, workshop)

    assert "4711" in caught.value.why
    assert not provisioned.layout.release(bundle.digest).exists()


def test_arguments_of_the_sandbox_are_never_expanded(provisioned, tmp_path):
    """
    systemd replaces $NAME and %n in the command line of a service.
    """
    for word in ("$HOME", "%h"):
        with pytest.raises(AssertionError):
            sandbox.sandboxed(provisioned.system, ["echo", word], timeout_s=1, writable=[])
