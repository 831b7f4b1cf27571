"""
The assertions of `inv verify` over our own transport, against an SSH server on this machine.
"""

import os
import re
import subprocess
from xml.etree import ElementTree

import pytest

from deploy.inventory.schema import Fleet
from deploy.verify import verify
from deploy.verify.assertions import Assertion, Suite
from tests.hostile_host import GARBAGE, HostileSshd
from tests.hostile_text import CORPUS
from tests.unit.deploy.inventory.builders import make_fleet
from tests.unit.deploy.transport.loopback import LoopbackSshd

ASSERTIONS = """
def test_output(host):
    shown = host.run("printf 'a b'; echo err >&2; exit 3")
    assert (shown.rc, shown.stdout, shown.stderr) == (3, "a b", "err\\n")

def test_arguments(host):
    assert host.check_output("printf %s", "$HOME; touch x") == "$HOME; touch x"

def test_name(host):
    assert host.backend.hostname in ("n1", "n2")

def test_status(host):
    assert host.run("true").succeeded
"""
DROPS = """
def test_a(host):
    assert host.run("true").succeeded

def test_b(host):
    host.run("kill -9 $PPID; sleep 30")

def test_c(host):
    assert host.run("true").succeeded
"""


@pytest.fixture
def sshd(tmp_path):
    with LoopbackSshd(tmp_path) as server:
        yield server


@pytest.fixture
def asserted(tmp_path):
    """
    Return a function that runs assertions on hosts as `inv verify` does.
    """

    def run_them(text, hosts, cases=1, conftest=""):
        folder = tmp_path / "assertions"
        folder.mkdir()
        (folder / "conftest.py").write_text(conftest)
        (folder / "test_it.py").write_text(text)
        tests = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
        suite = Suite(folder, tuple(Assertion(test, cases) for test in tests))
        fleet = make_fleet(tmp_path, {"row": "torch-2.13-cpu"})
        fleet = Fleet.model_construct(**dict(fleet) | {"hosts": tuple(hosts)})
        return verify(fleet, junit=tmp_path / "verify.xml", progress=lines.append, suite=suite)

    lines = []
    run_them.lines = lines
    return run_them


def test_assertions_run_over_one_login_a_host(sshd, asserted):
    """
    With status, both streams and quoted arguments; each host's commands share its connection.
    """
    report = asserted(ASSERTIONS, [sshd.host("n1"), sshd.host("n2")])
    assert report.failed == ()
    assert report.passed == 8
    assert sshd.logins == 2
    assert len(asserted.lines) == 8


UNMADE = """
import pytest

def test_made(host):
    assert host.run("true").succeeded

def test_skipped(host):
    pytest.skip("not today")

@pytest.mark.xfail(reason="known")
def test_expected_to_fail(host):
    assert not host.run("true").succeeded

def test_deselected(host):
    pass
"""
DESELECTS = """
def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if "deselected" not in item.name]
"""


def test_an_assertion_that_did_not_run_fails_its_host(sshd, asserted, tmp_path):
    """
    Skipped, expected to fail, or deselected: green would be a lie.
    """
    report = asserted(UNMADE, [sshd.host("n1")], conftest=DESELECTS)
    [finding] = report.failed
    assert (finding.host, finding.test) == ("n1", "the run")
    assert finding.why == (
        "3 of 4 assertions were not made: test_skipped, test_expected_to_fail, test_deselected"
    )
    assert report.passed == 1
    assert report.error is not None


def test_a_file_that_cannot_be_read_names_no_host_but_those_of_the_fleet(sshd, asserted):
    """
    Its case has no host; the remedy has none that does not exist.
    """
    report = asserted(ASSERTIONS + "\nimport no_such_module\n", [sshd.host("n1")])
    assert {finding.host for finding in report.failed} == {"n1"}
    assert "--limit ," not in report.error.fix


class Talkative(LoopbackSshd):
    """
    A login shell that prints before each command and at its own end.
    """

    def run_command(self, channel, command):
        super().run_command(channel, f"echo hello; trap 'echo bye' EXIT; {command}")


def test_what_the_login_shell_prints_is_no_output(tmp_path, asserted):
    """
    `echo hello` in .bashrc, and a trap at its end.
    """
    with Talkative(tmp_path) as sshd:
        report = asserted(ASSERTIONS, [sshd.host("n1")])
    assert report.failed == ()
    assert report.passed == 4


def test_no_ssh_client_is_started(sshd, asserted, tmp_path, monkeypatch):
    """
    Nothing reads an ssh_config, in which a value could name a command.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("ssh", "scp", "sftp"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert asserted(ASSERTIONS, [sshd.host("n1")]).failed == ()
    assert not (tmp_path / "started").exists()
    subprocess.run(["ssh", "n1"], check=True)  # negative control
    assert (tmp_path / "started").exists()


def test_a_host_with_another_key_is_not_asked(sshd, asserted):
    """
    The rules of known_hosts are those of every other task; the host is one finding.
    """
    sshd.record(None)
    report = asserted(ASSERTIONS, [sshd.host("n1")])
    [finding] = report.failed
    assert (finding.host, finding.test) == ("n1", "reachable")
    assert "no host key is recorded" in finding.why
    assert "inv trust" in report.error.fix
    assert (sshd.logins, sshd.commands) == (0, [])


def test_a_host_that_is_down_delays_and_fails_no_other(sshd, asserted):
    """
    It is named once, and its assertions are no cases of the XML.
    """
    report = asserted(ASSERTIONS, [sshd.host("n1"), sshd.host("n2", port=1)])
    assert [(f.host, f.test) for f in report.failed] == [("n2", "reachable")]
    assert report.passed == 4
    root = ElementTree.parse(report.junit).getroot()
    names = [case.get("name") for case in root.iter("testcase")]
    assert len(names) == 5
    assert [name for name in names if "n2" in name] == ["reachable[slipway://n2]"]
    assert {suite.get("tests"): suite.get("errors") for suite in root} == {"4": "0", "1": "0"}


def test_a_silent_host_ends_at_the_deadline_of_a_command(sshd, asserted):
    """
    Each further assertion of a lost host fails at once.
    """
    text = "def test_a(host):\n    host.run('sleep 60')\n\n" + DROPS.replace("test_", "test_x")
    report = asserted(text, [sshd.host("n1", command_timeout=1.0)])
    assert [(f.host, f.test) for f in report.failed] == [("n1", "reachable")]
    assert "no answer within 1 s" in report.failed[0].why
    assert report.passed == 0


def test_output_without_end_is_the_failure_of_its_host(sshd, asserted):
    """
    The limits of the transport hold for assertions too; nothing is left running.
    """
    text = "def test_a(host):\n    host.run('yes')\n"
    report = asserted(text, [sshd.host("n1")])
    assert [(f.host, f.test) for f in report.failed] == [("n1", "reachable")]
    assert report.passed == 0


class Liar(HostileSshd):
    """
    Answers commands of assertions with anything.
    """

    def _answer(self, _verb, _content):
        choices = [*GARBAGE, "".join(CORPUS).encode(errors="replace"), self.random.randbytes(3000)]
        return self.random.choice(choices), self.random.choice(choices), self.random.choice((0, 7))


def test_a_host_that_answers_anything_fails_alone(sshd, asserted, tmp_path):
    """
    200 answers: the other host passes, the XML is valid, and no escape sequence gets through.
    """
    text = "import pytest\n\n@pytest.mark.parametrize('number', range(200))\n"
    text += "def test_it(host, number):\n    assert host.check_output('printf x') == 'x'\n"
    (tmp_path / "liar").mkdir()
    with Liar(tmp_path / "liar", None, seed=3) as liar:
        report = asserted(text, [sshd.host("n1"), liar.host("n2")], cases=200)

    assert liar.answers == 200
    assert {finding.host for finding in report.failed} == {"n2"}
    assert (report.passed, len(report.failed)) == (200, 200)
    assert not any("\x1b" in finding.why for finding in report.failed)
    assert len(list(ElementTree.parse(report.junit).getroot().iter("testcase"))) == 400
