"""
A host that lies, floods and breaks off, behind a real SSH server: 10,000 answers.

It hurts nobody but itself: the others' work ends, errors name the liar, no file of the controller
is opened because of what it says.
"""

import contextlib
import os
import resource
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from deploy.errors import DeployError, TransportError
from deploy.host.layout import SLOTS
from deploy.host.protocol import (
    REQUESTS,
    FactQuery,
    SlotStop,
    Status,
)
from deploy.provision.probe import read_facts
from deploy.release.plan import plan_release
from deploy.release.rollback import plan_rollback
from deploy.transport import answers
from deploy.transport.client import HostClient
from deploy.transport.session import SessionTransport
from deploy.transport.ssh import SshTransport
from tests.builders import make_policy
from tests.every_request import EVERY_REQUEST
from tests.hostile_host import HostileSshd
from tests.hostile_session import LINES, HostileSessions
from tests.local_fleet import DIGESTS, local_fleet
from tests.unit.deploy.release.test_controller import release

ANSWERS_A_VERB = 200
IN_SESSIONS = 300  # answers
OPENED = []
_watch = threading.local()


def _audit(event, arguments):
    if event == "open" and getattr(_watch, "is_on", False):
        OPENED.append(str(arguments[0]))


sys.addaudithook(_audit)


@contextmanager
def opened_files():
    """
    Yield the list of the files that this thread opens meanwhile.
    """
    OPENED.clear()
    _watch.is_on = True
    try:
        yield OPENED
    finally:
        _watch.is_on = False


@pytest.fixture
def make_hostile(tmp_path):
    """
    Return a function that puts a hostile SSH server in front of a host of a fleet.
    """
    running = []

    def make(fleet, name, seed, honest=0.0, in_sessions=False):
        folder = tmp_path / f"{name}-{len(running)}"
        folder.mkdir()
        kind = HostileSessions if in_sessions else HostileSshd
        sshd = kind(folder, fleet.system(name), seed, honest).__enter__()
        host = sshd.host(name)
        transport = SessionTransport(host, sudo=False) if in_sessions else SshTransport(host)
        running.append((sshd, transport))
        client = HostClient(transport, actor="me@desk", sudo=False)
        fleet.clients[name] = client
        return sshd, client

    yield make
    for sshd, transport in running:
        transport.close()
        sshd.__exit__(None, None, None)


def test_every_verb_is_asked():
    assert {request.VERB for request in EVERY_REQUEST} == set(REQUESTS)


def test_no_answer_to_a_verb_is_more_than_an_error_of_its_host(make_hostile):
    """
    200 answers to each verb: a result of the right type, or an error that names the host.
    """
    with local_fleet("n1") as fleet:
        sshd, client = make_hostile(fleet, "n1", seed=10)
        client.fence = 1
        client.transport.connect()  # reads the key and known_hosts
        results, errors = 0, []
        remedies = _remedies("n1")
        before = peak_bytes()
        with opened_files() as files:
            for number in range(ANSWERS_A_VERB * len(EVERY_REQUEST)):
                request = EVERY_REQUEST[number % len(EVERY_REQUEST)]
                try:
                    result = client.call(request, timeout_s=20)
                except DeployError as error:
                    # Not the error itself, which holds the text of the answer.
                    errors.append((error.host, str(error), error.fix, type(error)))
                else:
                    results += 1
                    assert type(result).__name__ in request.__orig_bases__[0].__args__[0].__name__
    assert sshd.answers == ANSWERS_A_VERB * len(EVERY_REQUEST)
    assert len(errors) > results > 10  # a changed answer may still be a possible one
    for host, text, fix, kind in errors:
        assert host == "n1"
        assert len(text) < 20_000
        assert "\x1b" not in text
        assert fix in remedies or kind is TransportError
    assert files == []
    assert peak_bytes() - before < 160 * 2**20  # with the server, in this process


def test_no_answer_in_a_session_is_more_than_an_error_of_its_host(make_hostile):
    """
    300 answers in sessions: a result of the right type, or one error that names the host.

    Their frames are garbage, of other calls, too short, too long and without an end.
    """
    with local_fleet("n1") as fleet:
        sshd, client = make_hostile(fleet, "n1", seed=12, honest=0.3, in_sessions=True)
        client.fence = 1
        client.transport.connect()
        results, errors = 0, []
        before = peak_bytes()
        with opened_files() as files:
            for number in range(IN_SESSIONS):
                request = EVERY_REQUEST[number % len(EVERY_REQUEST)]
                try:
                    result = client.call(request, timeout_s=20)
                except DeployError as error:
                    errors.append((error.host, str(error)))
                else:
                    results += 1
                    assert type(result).__name__ in request.__orig_bases__[0].__args__[0].__name__
        assert set(sshd.told) == set(LINES)
        assert sshd.sessions > 10
        assert len(errors) > results > 10
        for host, text in errors:
            assert host == "n1"
            assert len(text) < 20_000
            assert "\x1b" not in text
            assert "no answer within" not in text  # no frame is waited for until the deadline
        assert files == []
        # 64 MiB without an end of line were sent some dozen times.
        assert peak_bytes() - before < 160 * 2**20
        client.transport.close()
        until_s = time.monotonic() + 60
        while _readers() and time.monotonic() < until_s:
            time.sleep(0.01)
        assert not _readers()


def _readers():
    """
    Return the threads that read or write a session.
    """
    return [thread for thread in threading.enumerate() if "(_read)" in thread.name or
            "(_write)" in thread.name]  # fmt: skip


def test_an_honest_host_answers_in_one_session(make_hostile):
    """
    Negative control: without lies there is no error, and no second session.
    """
    with local_fleet("n1") as fleet:
        sshd, client = make_hostile(fleet, "n1", seed=12, honest=1.0, in_sessions=True)
        for _ in range(20):
            assert client.call(Status(), timeout_s=20)
        assert _readers()
    assert (sshd.sessions, sshd.answers, sshd.told) == (1, 20, [])


def peak_bytes():
    """
    Return the most memory that this process has had, in bytes.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _remedies(host):
    """
    Return every remedy that the controller has for an answer of *host*.
    """
    texts = [*answers._REMEDIES.values(), *answers._REMEDIES_OF_VERBS.values()]
    filled = {t.format(host=host, slot=slot) for t in texts for slot in (*SLOTS, "SLOT")}
    program = f"inv provision --limit {host} installs the host program of this release"
    filled |= {program, f"{program}; if the answer stays so, do not trust that host"}
    return filled | {f"inv provision --limit {host}"}


def test_no_answer_to_a_look_is_more_than_an_error_of_its_host(make_hostile):
    """
    400 answers to the question that provisioning asks.
    """
    query = FactQuery(paths={"/etc/slipway": "", "/opt/slipway": ""}, room=("/opt",))
    errors = []
    with local_fleet("n1") as fleet:
        sshd, client = make_hostile(fleet, "n1", seed=11)
        for _ in range(400):
            try:
                facts = read_facts(
                    client.transport,
                    sudo=False,
                    packed_program=b"",
                    query=query,
                    timeout_s=20,
                )
            except DeployError as error:
                errors.append(error)
            else:
                assert facts is None or set(facts.paths) == set(query.paths)
    assert sshd.answers == 400
    assert {error.host for error in errors} == {"n1"}


@pytest.mark.parametrize(
    ("seed", "in_sessions"), [(s, False) for s in range(40)] + [(s, True) for s in range(8)]
)
def test_a_rollback_of_the_others_ends(make_hostile, seed, in_sessions):
    """
    Whatever one of three hosts answers: the others go back together, or none of them was touched.
    """
    with local_fleet("n1", "n2", "n3", serving=None) as fleet:
        fleet.serve("b1")
        fleet.serve("b2")
        states = fleet.observed()
        make_hostile(fleet, "n2", seed, honest=0.7, in_sessions=in_sessions)
        try:
            outcome = fleet.roll_back(plan_rollback(states, None))
        except DeployError as error:
            _refuse_internal(error)
            assert _changed(fleet) == set()
        else:
            _refuse_internal(outcome.error)
        _assert_alike(fleet, {"b1", "b2"})


@pytest.mark.parametrize("seed", range(40))
def test_a_release_to_the_others_ends(make_hostile, seed):
    """
    Whatever one of three hosts answers: the others serve one release, and only that.
    """
    with local_fleet("n1", "n2", "n3") as fleet:
        make_hostile(fleet, "n2", seed, honest=0.9)
        try:
            outcome, _ = release(fleet)
        except DeployError as error:  # refused: nothing was touched
            _refuse_internal(error)
            assert _changed(fleet) == set()
        else:
            _refuse_internal(outcome.error)
        _assert_alike(fleet, {"b1", "b2"})


@pytest.mark.parametrize("seed", range(20))
def test_plans_name_the_host_that_cannot_be_read(make_hostile, seed):
    """
    A forged state is refused with an error, or planned with; it is never a traceback.
    """
    with local_fleet("n1", "n2", "n3") as fleet:
        make_hostile(fleet, "n2", seed, honest=0.2)
        for _ in range(20):
            try:
                states = fleet.observed()
                plan_rollback(states, None)
                plan_release(
                    fleet="lab",
                    bundle=DIGESTS["b2"],
                    version="v2",
                    canary_pct=10,
                    policy=make_policy(),
                    observed=states,
                )
            except DeployError as error:
                _refuse_internal(error)


def _refuse_internal(error):
    assert error is None or "internal error" not in str(error), error.__cause__


def _changed(fleet):
    """
    Return the verbs that changed one of the honest hosts, leases aside.
    """
    verbs = {verb for name in ("n1", "n3") for verb in fleet.touched(name)}
    return {verb for verb in verbs if not verb.startswith("lease.")}


def _assert_alike(fleet, possible):
    """
    The honest hosts serve one and the same bundle alone, from one running slot.
    """
    served = [fleet.serves(name) for name in ("n1", "n3")]
    assert served[0] == served[1]
    [(bundle, weight)] = served[0].items()
    assert bundle in possible
    assert weight == 100


# -- without the guards


def test_without_the_check_of_contradictions_a_host_answers_about_another_slot(monkeypatch):
    text = '{"ok": true, "schema": 6, "result": {"slot": "blue", "unit": "inactive", '
    text += '"stopped": true, "took_s": 0.1}}'
    with pytest.raises(DeployError, match="not valid"):
        answers.read_answer("n1", SlotStop("green"), text)
    monkeypatch.setattr(answers, "_CHECKS", {})
    assert answers.read_answer("n1", SlotStop("green"), text).slot == "blue"


def test_without_the_limit_a_host_fills_the_memory(make_hostile, monkeypatch):
    """
    The limit of each request, and no other, bounds what is taken.
    """
    flood = "/bin/sh", "-c", "head -c 3145728 /dev/zero"
    with local_fleet("n1") as fleet:
        sshd, client = make_hostile(fleet, "n1", seed=1)
        sshd._answer = lambda verb, content: (b"x" * (3 * 2**20), b"", 0)
        with pytest.raises(TransportError, match="more than 1 MiB of output"):
            client.transport.run(flood, timeout_s=20)
        taken = client.transport.run(flood, timeout_s=20, output_max=4 * 2**20)
    assert len(taken.stdout) == 3 * 2**20


def test_a_drip_ends_at_the_deadline(make_hostile):
    """
    The deadline is of the whole answer, not of each byte.
    """
    begun = threading.Event()

    def drip(channel, command):
        begun.set()
        with contextlib.suppress(OSError, EOFError):
            while not channel.closed:
                channel.sendall(b" ")
                stop.wait(0.05)

    def succeed(channel, command):
        channel.send_exit_status(0)
        channel.close()

    stop = threading.Event()
    with local_fleet("n1") as fleet:
        sshd, client = make_hostile(fleet, "n1", seed=1)
        sshd.run_command = succeed  # the connection takes its own time
        client.transport.run(["true"], timeout_s=60)
        sshd.run_command = drip
        with pytest.raises(TransportError, match="no answer within"):
            client.call(Status(), timeout_s=2.0)
    stop.set()
    assert begun.is_set()


def test_the_trace_of_files_sees_an_open(tmp_path):
    with opened_files() as files:
        (tmp_path / "x").write_text("x")
    assert [os.path.basename(name) for name in files] == ["x"]  # noqa: PTH119
