"""
The one door for what hosts say, and its negative controls: each guard off, the attack succeeds.
"""

import json
from types import MappingProxyType

import pytest

from deploy.errors import CommandFailed, DeployError, LeaseHeld, TransportError
from deploy.host import rpc
from deploy.host.__main__ import handle
from deploy.host.protocol import (
    SCHEMA,
    Call,
    FactQuery,
    JournalRead,
    LeaseAcquire,
    Measure,
    SlotStop,
    Status,
    TrafficSet,
)
from deploy.host.rpc import encode_request
from deploy.leases.keeper import LeaseKeeper
from deploy.provision import run
from deploy.release.observe import Observed, observe
from deploy.transport import answers as door
from deploy.transport import client as host_client
from deploy.transport.answers import read_answer
from deploy.transport.client import HostClient
from deploy.transport.ssh import SshTransport
from tests.hostile_answers import Answer, ForgingSshd, HostileAnswers
from tests.local_fleet import local_fleet
from tests.local_host import local_hosts

STOPPED = {"slot": "blue", "unit": "inactive", "stopped": True, "took_s": 1.0}


def result(**fields):
    return json.dumps({"ok": True, "schema": SCHEMA, "result": fields})


def error(kind, what="w", why="y", fix="rm -rf /"):
    words = {"kind": kind, "what": what, "why": why, "fix": fix}
    return json.dumps({"ok": False, "schema": SCHEMA, "error": words})


@pytest.fixture
def sshd(tmp_path):
    with ForgingSshd(tmp_path, HostileAnswers(1)) as server:
        yield server


@pytest.fixture
def transport(sshd):
    transport = SshTransport(sshd.host("evil"))
    yield transport
    transport.close()


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (SlotStop("green"), result(**STOPPED)),
        (
            TrafficSet({"blue": 90, "green": 10}),
            result(weights={"blue": 10, "green": 90}, haproxy={"blue": "UP", "green": "UP"}),
        ),
        (Measure(), result(at_s=1.0, slots={})),
        (JournalRead(4), result(lines=["x"], last_seq=4, is_end=False)),
        (JournalRead(4), result(lines=["x"], last_seq=3, is_end=True)),
        (JournalRead(4), result(lines=[], last_seq=9, is_end=False)),
        (JournalRead(4, limit=1), result(lines=["x", "y"], last_seq=9, is_end=True)),
    ],
)
def test_a_result_about_something_else_is_refused(request_, text):
    with pytest.raises(CommandFailed, match="evil"):
        read_answer("evil", request_, text)


def test_a_page_of_the_journal_is_taken():
    """
    Control: one without a contradiction, and the end.
    """
    for lines, last_seq, is_end in ((["x", "y"], 6, False), ([], 4, True)):
        text = result(lines=lines, last_seq=last_seq, is_end=is_end)
        assert read_answer("n1", JournalRead(4), text).last_seq == last_seq


def test_without_the_check_a_contradiction_is_taken(monkeypatch):
    monkeypatch.setattr(door, "_refuse_contradiction", lambda *_: None)
    assert read_answer("evil", SlotStop("green"), result(**STOPPED)).slot == "blue"


def test_a_host_selects_only_kinds_of_its_verb():
    with pytest.raises(CommandFailed):
        read_answer("evil", Status(), error("LeaseHeld"))
    with pytest.raises(LeaseHeld):
        read_answer("evil", LeaseAcquire("ann", 30.0), error("LeaseHeld"))


def test_without_the_selection_a_host_chooses_the_exit_code(monkeypatch):
    monkeypatch.setattr(door, "_ONLY_OF", MappingProxyType({}))
    with pytest.raises(LeaseHeld):
        read_answer("evil", Status(), error("LeaseHeld"))


def test_words_of_a_host_are_a_quoted_reason_and_never_a_remedy():
    with pytest.raises(CommandFailed) as caught:
        read_answer("evil", Status(), error("CommandFailed", "\x1b[2Jgone", "n2: ok\nfix: rm"))
    assert caught.value.why.startswith('evil says: "')
    assert caught.value.why.isprintable()
    assert "rm" not in caught.value.fix
    assert "gone" not in caught.value.what


def test_an_answer_of_many_values_is_refused_before_it_is_parsed(monkeypatch):
    text = result(slots=[{}] * 100_000)
    with pytest.raises(CommandFailed, match="too many values"):
        read_answer("evil", Status(), text)
    monkeypatch.setattr(rpc, "_BYTES_PER_VALUE", 1)
    with pytest.raises(CommandFailed, match="missing"):
        read_answer("evil", Status(), text)


@pytest.mark.parametrize(
    "failure", [KeyError("x"), RecursionError(), MemoryError(), AssertionError()]
)
def test_an_exception_of_any_class_is_that_hosts_failure(monkeypatch, failure):
    """
    Also one that passes the door: the other hosts are read.
    """

    def fail_at_n2(host, request, text):
        if host == "n2":
            raise failure
        return read_answer(host, request, text)

    monkeypatch.setattr(host_client, "read_answer", fail_at_n2)
    with local_fleet("n1", "n2", "n3") as fleet:
        states = observe(fleet.clients.values(), timeout_s=1.0)
    assert isinstance(states["n2"], DeployError)
    assert states["n2"].host == "n2"
    assert isinstance(states["n1"], Observed)
    assert isinstance(states["n3"], Observed)


def test_lease_numbers_that_go_backwards_are_refused():
    with local_fleet("n1") as fleet:
        client = fleet.clients["n1"]
        keeper = LeaseKeeper(fleet.clients, owner="me", release="r", ttl_s=15.0, clock=fleet.clock)
        assert keeper.take_all(["n1"]) == {}
        client.fence = 1000
        with pytest.raises(CommandFailed, match="numbers only grow"):
            keeper.take("n1")
        keeper.release_all()


def test_facts_that_cannot_be_compared_fail_their_host_alone(monkeypatch):
    def fail(*_):
        raise KeyError("units")

    monkeypatch.setattr(run, "_differs", fail)
    events = []
    assert run._differs_safely("n1", None, None, False, events.append) is False
    assert [event.host for event in events] == ["n1"]


def test_a_channel_is_closed_when_its_output_is_too_long(sshd, transport):
    """
    On each of the two outputs; a larger limit takes the same answer: the control.
    """
    part = b"x" * 65536
    for kind in ("long", "flood"):
        sshd.choose = lambda verb, content, kind=kind: sshd.answers.answer(verb, kind)
        with pytest.raises(TransportError, match="more than 1 MiB"):
            transport.run(["true"], timeout_s=10.0)
    sshd.choose = lambda verb, content: Answer(part, repeats=18)
    assert len(transport.run(["true"], timeout_s=10.0, output_max=2**22).stdout) == 18 * 65536


def test_a_host_that_drips_ends_at_the_deadline(sshd, transport):
    sshd.choose = lambda verb, content: sshd.answers.answer(verb, "drip")
    with pytest.raises(TransportError, match="within"):
        transport.run(["true"], timeout_s=0.5)


def test_output_is_read_while_input_is_sent(sshd, transport, tmp_path):
    """
    A host that takes no input and writes without end is cut off by the size, not by the deadline.
    """
    large = tmp_path / "large"
    large.write_bytes(bytes(2**23))
    sshd.reads_input = False
    sshd.choose = lambda verb, content: sshd.answers.answer(verb, "endless")
    with pytest.raises(TransportError, match="more than 1 MiB"):
        transport.put(large, "/x", timeout_s=5.0)
    [link] = transport._links
    assert link.connection.is_connected  # the deadline would have closed it


def test_a_client_names_its_host(transport, sshd):
    sshd.choose = lambda verb, content: Answer(b"[" * 200_000)
    with pytest.raises(CommandFailed) as caught:
        HostClient(transport, actor="me", sudo=False).call(Status())
    assert caught.value.host == "evil"


def test_what_the_login_shell_prints_is_no_answer(transport, sshd):
    """
    `echo hello` in .bashrc, and a trap at its end.
    """
    text = result(**STOPPED | {"slot": "green"})
    sshd.choose = lambda verb, content: Answer(f"hello\n{text}\nbye\n".encode())
    client = HostClient(transport, actor="me", sudo=False)
    assert client.call(SlotStop("green")).slot == "green"


def test_a_look_at_secrets_has_their_paths_too():
    """
    Negative control: what was asked for is no contradiction, path of a secret or not.
    """
    with local_hosts("n1") as hosts:
        query = FactQuery(
            paths={"/etc/slipway": ""}, secrets={"/etc/slipway/environment": "a" * 64}
        )
        line = handle(hosts["n1"].system, query.VERB, encode_request(query, Call()).decode())
    assert set(read_answer("n1", query, line).paths) == {*query.paths, *query.secrets}
