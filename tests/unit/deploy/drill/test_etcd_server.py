"""
The drill's etcd, a real one: it answers, its fleet file is valid, and it ends with the drill.
"""

import subprocess
import sys
import time

import pytest
import yaml

from deploy.drill.drill_lab import DrillLab, fleet_document
from deploy.drill.etcd_server import EtcdServer, etcd_server, find_etcd
from deploy.errors import PreconditionError
from deploy.inventory.load import load_fleet
from deploy.lab.config import LabConfig
from deploy.release.etcd import EtcdClient
from deploy.wiring.state import etcd_settings


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    try:
        return find_etcd(tmp_path_factory.mktemp("package"))
    except PreconditionError as error:
        pytest.skip(str(error))


@pytest.fixture
def server(program, tmp_path):
    one = EtcdServer(program, tmp_path / "member")
    yield one
    one.stop()


def test_operators_reach_it_by_the_fleet_file_of_the_drill(server, tmp_path):
    server.start()
    document = fleet_document(
        LabConfig(tmp_path, tmp_path), ("n1", "n2"), state=server.document("drill/1")
    )
    path = tmp_path / "drill7.yml"
    path.write_text(yaml.safe_dump(document))
    fleet = load_fleet(str(path), root=tmp_path)
    assert (fleet.state.kind, fleet.state.prefix) == ("etcd", "drill/1")
    client = EtcdClient(etcd_settings(fleet, {}))
    assert client.txn(puts=[("drill/1/x", b"1", 0)]).succeeded
    assert client.txn(ranges=["drill/1/x"]).values[0].value == b"1"
    client.close()


def test_new_hosts_get_keys_of_their_own(tmp_path):
    """
    What etcd has of the hosts before them is not their state.
    """
    lab = DrillLab(7, 2, (_model(tmp_path), _model(tmp_path)), tmp_path, print, _FakeServer())
    prefixes = []
    for _ in range(2):
        lab._life += 1
        lab.write_fleet_file()
        prefixes.append(yaml.safe_load(lab.fleet_file.read_text())["state"]["prefix"])
    assert len(set(prefixes)) == 2


def test_without_etcd_the_state_is_on_the_hosts(tmp_path):
    lab = DrillLab(7, 2, (_model(tmp_path), _model(tmp_path)), tmp_path, print)
    lab.write_fleet_file()
    assert "state" not in yaml.safe_load(lab.fleet_file.read_text())


def test_it_ends_with_a_drill_that_is_killed(program, tmp_path):
    """
    Its parent has no chance to stop it; negative control: it ran before.
    """
    code = (
        "import sys, pathlib; from deploy.drill.etcd_server import EtcdServer; "
        "one = EtcdServer(sys.argv[1], pathlib.Path(sys.argv[2])); one.start(); "
        "print(one.pid, flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, program, str(tmp_path / "member")]
    parent = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    assert _runs(pid)
    parent.kill()
    parent.wait()
    until_s = time.monotonic() + 60
    while _runs(pid) and time.monotonic() < until_s:
        time.sleep(0.02)
    assert not _runs(pid)


def test_a_program_that_is_no_etcd_says_why(tmp_path):
    server = EtcdServer("/bin/false", tmp_path / "member")
    with pytest.raises(PreconditionError, match="etcd does not start"):
        server.start()
    assert server.pid is None


def test_without_etcd_and_apt_the_error_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PreconditionError) as caught, etcd_server(tmp_path):
        pass
    assert "apt-get install etcd-server" in caught.value.fix


class _FakeServer:
    def document(self, prefix):
        return {"kind": "etcd", "prefix": prefix}


def _model(folder):
    (folder / "live_prompts.json").write_text("[]")
    return folder


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - of a process that may just end
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
