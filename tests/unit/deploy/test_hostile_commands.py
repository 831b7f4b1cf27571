"""
Whole commands beside a host whose answers have the right types and any content, or never end.

It can fail, delay its own part within deadlines and lie about itself.  It cannot end a command in
a traceback, leave another host's work in the middle, take memory, or have a file of this machine
opened.
"""

import contextlib
import json
import random
import resource
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.bundle import send
from deploy.errors import DeployError
from deploy.host.protocol import (
    REQUESTS,
    SCHEMA,
    Status,
)
from deploy.inventory.schema import Fleet
from deploy.provision import fleet_specs, run
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import File
from deploy.release.observe import Observed, observe
from deploy.release.rollback import plan_rollback
from deploy.transport.client import HostClient
from deploy.transport.ssh import SshTransport
from tests.every_request import EVERY_REQUEST
from tests.hostile_answers import Answer, ForgingSshd, HostileAnswers
from tests.local_fleet import local_fleet
from tests.local_host import handle
from tests.unit.deploy.bundle.builders import Workshop, make_key
from tests.unit.deploy.transport.loopback import LoopbackSshd

SEED = 20_261_126
HONEST = ("n1", "n2")
DIRECT, SCENES, LOOKS = 1_800, 60, 12  # single calls; releases and rollbacks; provisionings
DIGEST = "a" * 64

# -- what this process opens

_opened: list[str] | None = None


def _note(event, arguments):
    if event == "open" and _opened is not None and isinstance(arguments[0], (str, bytes)):
        path = arguments[0]
        _opened.append(path if isinstance(path, str) else path.decode(errors="replace"))


sys.addaudithook(_note)


@pytest.fixture
def opened():
    """
    Paths that this process opens during the test, by any thread.
    """
    global _opened
    _opened = []
    yield _opened
    _opened = None


CODE = tuple(
    str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[3])
)


def foreign(opened, *own):
    """
    Return what was opened beside our own code and the directories *own*.
    """
    trusted = (*CODE, *map(str, own), "/dev/shm/sw-", "/dev/null", "/dev/urandom", "/proc/self/")
    trusted += (
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/nsswitch.conf",
        "/etc/passwd",
        "/etc/host.conf",
    )
    return sorted(
        {path for path in opened if path.startswith(("/", ".")) and not path.startswith(trusted)}
    )


@pytest.fixture
def bounded_memory():
    """
    Fail when the peak of this process grows by 200 MiB during the test.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 200 * 1024


# -- the hosts


@pytest.fixture
def answers():
    return HostileAnswers(SEED)


@pytest.fixture
def evil(tmp_path, answers):
    with ForgingSshd(tmp_path, answers) as sshd:
        yield sshd


@pytest.fixture
def client(evil):
    transport = SshTransport(evil.host("evil"))
    yield HostClient(transport, actor="ann", sudo=False)
    transport.close()


def errors_of(text):
    return [bad for bad in ("internal error", "Traceback", "defect of slipway") if bad in text]


def check_error(error):
    assert error.host == "evil"
    assert str(error).startswith("evil: ")
    assert "/etc/shadow" not in error.fix
    assert error.fix.isprintable()
    assert errors_of(str(error)) == []


@pytest.mark.usefixtures("bounded_memory")
def test_no_answer_to_a_verb_is_more_than_an_error_of_its_host(client, answers, opened, tmp_path):
    """
    Each answer is a result of the verb's types or an error that names the host.
    """
    assert {type(call) for call in EVERY_REQUEST} == set(REQUESTS.values())
    exit_codes = set()
    for number in range(DIRECT):
        request = EVERY_REQUEST[number % len(EVERY_REQUEST)]
        try:
            client.call(request, timeout_s=0.5)
        except DeployError as error:
            check_error(error)
            exit_codes.add(error.exit_code)
    assert answers.total == DIRECT
    assert len(answers.count) > 15, answers.count
    # None of a wrong command line, another host's key or a verdict: only what such verbs can have.
    assert exit_codes <= {3, 4, 5, 6, 7, 11, 14, 15, 18, 20, 25, 31}
    assert foreign(opened, tmp_path) == []


@contextlib.contextmanager
def scene(fleet, evil, rng):
    """
    Let the broken host answer honestly for a while, so that commands go as far as they can.

    A call that nobody waits for may come after the end, when the files of *fleet* are gone.
    """
    turn, left = threading.Lock(), rng.choice([0, 1, 2, 3, 4, 6, 8, 12, 20, 40])

    def choose(verb, content):
        nonlocal left
        with turn:
            if left > 0:
                left -= 1
                line = handle(fleet.system("evil"), verb, content.decode())
                return Answer(line.encode() + b"\n")
        return evil.answers.answer(verb, None if rng.random() < 0.6 else "forged")

    evil.choose = choose
    yield
    with turn:
        left = 0


def roll_all_back(fleet, events):
    return fleet.roll_back(plan_rollback(readable(fleet)), report=events.append)


def release_all(fleet, events):
    readable(fleet)  # as `inv` refuses a host that cannot be read
    return fleet.release("b3", report=events.append)


def readable(fleet):
    """
    Return what every host looks like; raise the error of one that cannot be read, as `inv` does.
    """
    states = observe(fleet.clients.values(), timeout_s=0.5)
    for state in states.values():
        if isinstance(state, DeployError):
            raise state
    return states


def lease_of(fleet, name):
    return HostClient(fleet[name], actor="test", sudo=False).call(Status()).lease


class Quick:
    """
    A transport with short deadlines: the broken host is on this machine.
    """

    def __init__(self, transport):
        self._transport = transport
        self.host = transport.host
        self.close, self.put = transport.close, transport.put

    def run(self, argv, *, timeout_s, **options):
        return self._transport.run(argv, timeout_s=min(timeout_s, 0.5), **options)


@pytest.mark.usefixtures("bounded_memory")
def test_the_other_hosts_work_is_complete(evil, answers, opened, tmp_path):
    """
    Whatever the broken host answers, and when: the others serve one whole release, old or new,
    from one slot, and hold no lease.
    """
    rng, ended = random.Random(SEED), {}
    for number in range(SCENES):
        command = (roll_all_back, release_all)[number % 2]
        with ExitStack() as stack:
            fleet = stack.enter_context(local_fleet(*HONEST, "evil", serving="b1"))
            fleet.serve("b2")
            transport = SshTransport(evil.host("evil"))
            stack.callback(transport.close)
            fleet.clients["evil"] = HostClient(Quick(transport), actor="me", sudo=False)
            stack.enter_context(scene(fleet, evil, rng))
            events = []
            try:
                outcome = command(fleet, events)
                how = str(outcome.ending)
                text = f"{outcome.as_json()} {[(e.text, e.data) for e in events]}"
            except DeployError as error:  # nothing was touched
                how, text = "refused", str(error)
            assert errors_of(text) == [], (number, text)
            ended[command.__name__, how] = ended.get((command.__name__, how), 0) + 1
            served = {name: fleet.serves(name) for name in HONEST}
            for name in HONEST:
                assert lease_of(fleet, name) is None, (number, how)
                assert list(served[name].values()) == [100], (number, how, served)
                if how == "refused":
                    assert served[name] == {"b2": 100}
                elif command is roll_all_back:
                    assert served[name] == {"b1": 100}, (number, how, served)
            assert served["n1"] == served["n2"], (number, how)
    assert {how for _, how in ended} > {"refused"}, ended
    assert foreign(opened, tmp_path) == []
    assert answers.total > 500


@pytest.mark.usefixtures("bounded_memory")
def test_status_shows_the_other_hosts(evil, answers, opened, tmp_path):
    transport = SshTransport(evil.host("evil"))
    with local_fleet(*HONEST) as fleet:
        clients = [*fleet.clients.values(), HostClient(Quick(transport), actor="me", sudo=False)]
        for _ in range(600):
            states = observe(clients, timeout_s=60)
            assert all(isinstance(states[name], Observed) for name in HONEST)
            if isinstance(states["evil"], Observed):
                one = states["evil"]
                assert {slot.slot for slot in one.slots} == {"blue", "green"}
                assert one.stable is None or one.spare
            else:
                assert states["evil"].host == "evil"
    transport.close()
    assert answers.total > 500
    assert foreign(opened, tmp_path) == []


# Of a look.  Every verb can meet a full disk.
POSSIBLE = {"CommandFailed", "TransportError", "PreconditionError", "DiskTooSmall"}
NAMES = tuple(f"evil{number}" for number in range(8))


def provision(monkeypatch, evil, honest, path, *, check):
    """
    Provision the honest host and eight names of the broken one; each is to have one file.
    """
    owner = path.parent.owner()
    file = File(path=str(path), content=b"wanted\n", owner=owner, group=owner, mode="0600")
    wanted = ResourceSet(requirements=(), placed=(file,), running=())
    hosts = (honest.host("n1"), *(evil.host(name, command_timeout=1.0) for name in NAMES))
    names = [host.name for host in hosts]
    monkeypatch.setattr(run, "check_inputs", lambda *_: None)
    monkeypatch.setattr(fleet_specs, "resource_sets", lambda *_, **__: dict.fromkeys(names, wanted))
    fleet = Fleet.model_construct(name="lab", hosts=hosts)
    events = []
    report = run.provision(fleet, check=check, progress=events.append, env={}, deadline_s=600.0)
    for failure in report.failed:
        assert failure.host in NAMES
        assert failure.error in POSSIBLE, failure
        assert errors_of(f"{failure}") == []
    return report


@pytest.fixture
def honest(tmp_path):
    folder = tmp_path / "honest"
    folder.mkdir()
    with LoopbackSshd(folder) as sshd:
        yield sshd


@pytest.mark.usefixtures("bounded_memory")
def test_a_look_at_other_hosts_is_complete(monkeypatch, evil, honest, answers, opened, tmp_path):
    rng = random.Random(SEED)

    def choose(verb, content):
        is_facts = verb == "facts" and rng.random() < 0.3
        return answers.forged_facts(content) if is_facts else answers.answer(verb)

    evil.choose = choose
    for _ in range(LOOKS):
        report = provision(monkeypatch, evil, honest, tmp_path / "file", check=True)
        assert "n1" in report.ok
        assert {change.resource for change in report.changes if change.host == "n1"}
    assert answers.total == LOOKS * len(NAMES)
    assert foreign(opened, tmp_path) == []


def test_changes_of_other_hosts_are_complete(monkeypatch, evil, honest, answers, tmp_path):
    """
    In the process that changes hosts: the honest host has its file, the broken ones an error each.
    """
    looks = []

    def choose(verb, content):
        if verb == "facts":
            looks.append(verb)
            # The first look of each lets the changes begin; half of the second ones, too.
            is_late = len(looks) > len(NAMES) * 3 // 2
            return answers.answer(verb) if is_late else answers.forged_facts(content)
        # No change begins without a lease.
        return answers.granted() if verb == "lease.acquire" else answers.answer(verb)

    evil.choose = choose
    report = provision(monkeypatch, evil, honest, tmp_path / "file", check=False)
    assert "n1" in report.ok
    assert (tmp_path / "file").read_bytes() == b"wanted\n"
    assert len(looks) > len(NAMES), report.failed
    assert len(report.failed) >= len(NAMES) // 2


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "keys").mkdir()
    workshop = Workshop(tmp_path)
    signed = workshop.signed(make_key(tmp_path / "keys")[0])
    return signed, workshop.wheels


def send_to(client, bundle):
    signed, wheels = bundle
    with contextlib.suppress(DeployError):
        send.stage(signed, client=client, wheels=wheels)


def asks_for(secret, wheels):
    """
    Return an answer to stage.missing that asks for *secret*, and one that any other verb gets.
    """
    path = "/".join([".."] * len(wheels.parts)) + str(secret)
    needs = {"bundle": False, "venv": False, "blobs": [], "wheels": [path]}
    needs |= {"need_bytes": 0, "free_bytes": 2**40}
    line = json.dumps({"ok": True, "schema": SCHEMA, "result": needs}).encode()
    return lambda verb, content: Answer(line)


def test_only_files_of_the_manifest_are_opened(client, evil, answers, bundle, opened, tmp_path):
    signed, wheels = bundle
    manifest = {signed.manifest_path, signed.signature_path, signed.archive_path}
    manifest |= {signed.blob(file.sha256) for file in signed.manifest.model.files}
    manifest |= {wheels / wheel.file for wheel in signed.manifest.lock.wheels}
    secret = tmp_path / "secret"
    secret.write_text("key")
    send_to(client, bundle)  # connects
    opened.clear()

    for _ in range(60):
        evil.choose = lambda verb, content: answers.answer(verb, "forged")
        send_to(client, bundle)
        evil.choose = asks_for(secret, wheels)
        send_to(client, bundle)

    local = {path for path in opened if path.startswith(str(tmp_path))}
    assert local - {str(tmp_path / "id_ecdsa"), str(tmp_path / "known_hosts")} <= {
        str(path) for path in manifest
    }
    assert foreign(opened, tmp_path) == []


def test_without_the_check_of_names_a_secret_is_opened(
    client, evil, bundle, opened, tmp_path, monkeypatch
):
    """
    The control of the test above, and of what it traces.
    """
    secret = tmp_path / "secret"
    secret.write_text("key")
    evil.choose = asks_for(secret, bundle[1])
    monkeypatch.setattr(send, "_refuse_foreign_names", lambda *_: None)
    monkeypatch.setattr("deploy.host.codec.re.fullmatch", lambda *_: True)
    send_to(client, bundle)
    assert any(Path(path).resolve() == secret for path in opened if "secret" in path)
