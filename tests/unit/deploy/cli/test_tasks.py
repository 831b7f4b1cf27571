"""
Bodies of tasks, called with invoke's own test context; no host is needed.

What a task prints and its exit code are the interface: they are what is asserted.
"""

import importlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from invoke.context import MockContext

import deploy.cli.command
from deploy.lab.config import LabConfig
from deploy.provision.report import Change, ProvisionReport
from deploy.transport.base import Completed
from deploy.versions import host_output
from deploy.wiring import fleet_status, host_facts
from tests.unit.deploy.inventory.builders import write_fleet

HOST_TEXTS = Path(__file__).parents[1] / "versions" / "hosts"
ROOT = Path(__file__).parents[4]
CLOSED = {
    name: {"address": "127.0.0.1", "ssh": {"port": port}}
    for name, port in {"n1": 1, "n2": 2}.items()  # nothing listens there
}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """
    Return a function that calls a task's body: name and flags in; code, output, errors out.
    """
    monkeypatch.syspath_prepend(str(ROOT))
    tasks = importlib.import_module("tasks")
    monkeypatch.setenv("SLIPWAY_CWD", str(tmp_path))
    monkeypatch.delenv("INVOKE_FLEET", raising=False)
    changes = {"hosts": CLOSED, "row": "torch-2.13-cpu", "service.device": "cpu"}
    write_fleet(tmp_path, changes, name="closed")
    context = MockContext()
    context.config.fleet = "lab"

    def call(name, *args, **flags):
        body = getattr(tasks, name)
        code = 0
        try:
            body(context, *args, **flags)
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    call.fleet = "inventories/closed.yml"
    return call


def test_matrix_prints_the_rows(run):
    code, out, _ = run("matrix")
    assert code == 0
    assert "torch-2.13-cu130" in out

    code, out, err = run("matrix", json=True)
    assert {row["name"] for row in json.loads(out)["rows"]} > {"torch-2.13-cpu"}
    assert err == ""


def test_matrix_answers_a_question(run):
    """
    With the verdict of the driver, the best row first.
    """
    code, out, err = run("matrix", torch="2.3", gpu="h100", driver="535.161.08", json=True)
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert (answer["row"], answer["rows"][0]["verdict"]) == ("torch-2.3-cu121", "ok")
    assert answer["question"] == {"torch": "2.3", "gpu": "h100", "driver": "535.161.08"}
    assert answer["rows"][0]["in_fleet_files"]


def test_matrix_names_each_conflict_and_the_nearest_rows(run):
    """
    Exit code 30; the error has what is in the way and what to give instead.
    """
    code, out, err = run("matrix", torch="2.15", gpu="v100", driver="620")
    assert code == 30
    assert "torch-2.14-cu126" in out
    assert "torch and gpu: torch 2.15+cu132 has no code for V100 (7.0)" in err
    assert "driver and gpu: branch 580 is the last for V100 (7.0)" in err
    assert "--torch 2.14 and driver 525.60.13 or later, up to branch 580" in err

    code, out, err = run("matrix", torch="2.15", gpu="v100", driver="620", json=True)
    answer = json.loads(out)
    assert (code, err, answer["row"]) == (30, "", None)
    assert {tuple(c["pins"]) for c in answer["conflicts"]} == {("torch", "gpu"), ("driver", "gpu")}
    assert answer["nearest"][0]["row"]["row"] == "torch-2.14-cu126"
    assert answer["error"]["exit_code"] == 30


class OneAnswer:
    """
    The transport of a host that answers the matrix's command, and nothing else.
    """

    def __init__(self, stdout):
        self.stdout = stdout

    def run(self, argv, *, timeout_s, check, output_max):
        assert (argv, check) == (host_output.COMMAND, False)
        assert timeout_s <= 30
        assert output_max <= 1 << 20
        return Completed(argv, 0, self.stdout, "", 0.1)


def test_matrix_reads_a_host(run, monkeypatch):
    """
    A flag goes before what the host says; a name that the fleet lacks is refused unread.
    """
    text = (HOST_TEXTS / "h100_debian12_open.txt").read_text()
    closed = nullcontext(SimpleNamespace(transports={"n1": OneAnswer(text)}))
    monkeypatch.setattr(host_facts, "connect", lambda of: closed)

    code, out, _ = run("matrix", host="n1", hosts=run.fleet, json=True)
    answer = json.loads(out)
    assert code == 0
    assert answer["host"] == {"driver": "580.95.05", "gpus": ["H100"], "os": "debian12",
                              "modules": "open", "nvswitch": True}  # fmt: skip
    assert answer["rows"][0]["python"] == "3.11"
    assert answer["rows"][0]["verdict"] == "ok"

    code, out, _ = run("matrix", host="n1", driver="535", hosts=run.fleet, json=True)
    assert json.loads(out)["host"]["driver"] == "535.309.01"

    code, _, err = run("matrix", host="\x1bnosuch", hosts=run.fleet)
    assert code == 12
    assert "--host \\x1bnosuch: not in fleet" in err
    assert "inv matrix --host n1" in err


def test_matrix_refuses_a_value_that_it_does_not_know(run):
    code, out, err = run("matrix", gpu="\x1b[31mmi300")
    assert (code, out) == (19, "")
    assert "--gpu \\x1b[31mmi300: not valid" in err
    assert "fix: --gpu" in err


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"all": True},
        {"gpu": "h100", "driver": "470.256.02", "os": "debian13", "python": "3.13"},
        {"torch": "2.15", "gpu": "v100", "driver": "620"},
        {"torch": "2.11", "cuda": "13.0", "driver": "535", "gpu": "a100", "os": "ubuntu2404"},
    ],
    ids=str,
)
def test_the_tables_of_the_matrix_are_readable_at_100_columns(run, flags):
    _, out, _ = run("matrix", **flags)
    assert out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(("changes", "expected"), [(True, 2), (False, 0)])
def test_a_check_that_finds_a_difference_exits_2(run, monkeypatch, changes, expected):
    """
    As `diff` and `terraform plan` do, so that CI can tell; it is no error.
    """
    import deploy.provision

    change = Change("n1", "file", "create")
    report = ProvisionReport(check=True, ok=("n1",), changes=(change,) * changes, failed=())
    monkeypatch.setattr(deploy.provision, "provision", lambda *_, **__: report)
    code, out, _ = run("provision", hosts=run.fleet, check=True, json=True)
    assert code == expected
    assert "error" not in json.loads(out)


def test_the_default_fleet_is_that_of_the_configuration(run):
    """
    `fleet` of invoke.yaml; --hosts goes before it.
    """
    assert run("status", limit="nosuch")[0] == 12
    code, _, err = run("status", hosts="nosuch")
    assert code == 2
    assert "no fleet is named 'nosuch'" in err


@pytest.mark.parametrize("as_json", [False, True])
def test_status_shows_hosts_that_can_not_be_reached(run, as_json, monkeypatch, tmp_path):
    """
    Each is a finding with the time when it was last seen, and the exit code says so.
    """
    monkeypatch.setattr(fleet_status, "ROOT", tmp_path)
    code, out, _ = run("status", hosts=run.fleet, json=as_json)
    assert code == 26
    if as_json:
        document = json.loads(out)
        assert [host["reachable"] for host in document["hosts"]] == [False, False]
        assert [finding["host"] for finding in document["findings"]] == ["n1", "n2"]
        assert document["error"]["kind"] == "FleetDiffers"
    else:
        assert out.count("unreachable") == 2
        assert out.count("never seen from this machine") == 2


@pytest.mark.parametrize(("name", "flags"), [("rollback", {"yes": True}), ("rollback", {})])
def test_a_host_that_can_not_be_read_stops_a_rollback(run, name, flags):
    """
    Nothing is asked before it is known what to do.
    """
    code, out, err = run(name, hosts=run.fleet, **flags)
    assert (code, out) == (5, "")
    assert "n1, n2: cannot be read" in err

    code, out, _ = run(name, hosts=run.fleet, json=True, **flags)
    assert (code, json.loads(out)["error"]["kind"]) == (5, "TransportError")


@pytest.mark.parametrize("name", ["plan", "release"])
@pytest.mark.parametrize("share", ["0", "51", "ten"])
def test_a_canary_share_is_checked_before_anything_connects(run, name, share):
    code, out, err = run(name, hosts=run.fleet, canary=share)
    assert (code, out) == (19, "")
    assert f"--canary {share}" in err


def test_provision_insists_on_yes_without_a_terminal(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, out, err = run("provision", hosts=run.fleet)
    assert (code, out) == (19, "")
    assert "add --yes" in err


def test_verify_reports_hosts_that_can_not_be_reached_once(run, tmp_path):
    """
    The sum on standard output, each finding in the error; the XML where the caller wants it.
    """
    code, out, err = run("verify", hosts=run.fleet, junit="out/v.xml")
    assert code == 22
    assert out.startswith("0 passed, 2 failed")
    assert err.count("n1: reachable") == 1
    assert (tmp_path / "out" / "v.xml").is_file()

    code, out, _ = run("verify", hosts=run.fleet, junit="v.xml", json=True)
    document = json.loads(out)
    assert (code, document["error"]["exit_code"], len(document["failed"])) == (22, 22, 2)


def test_verify_refuses_a_folder_for_its_xml(run, tmp_path):
    (tmp_path / "out").mkdir()
    assert run("verify", hosts=run.fleet, junit="out")[0] == 19


def test_a_lab_that_is_down_has_no_hosts(run, monkeypatch, tmp_path):
    lab = LabConfig(tmp_path / "lab", tmp_path / "lab", bridge="slipx", prefix="10.79.0")
    for name, value in lab.as_env().items():
        monkeypatch.setenv(name, value)
    assert run("lab_status")[1] == "the lab is down; inv lab.up boots it\n"
    assert json.loads(run("lab_status", json=True)[1]) == {"hosts": [], "subnet": "10.79.0.0/24"}
    code, _, err = run("lab_ssh", "n1")
    assert code == 12
    assert "n1" in err


@pytest.mark.parametrize(("hosts", "code"), [("many", 19), ("0", 23), ("99", 23)])
def test_a_number_of_lab_hosts_is_checked_first(run, monkeypatch, tmp_path, hosts, code):
    monkeypatch.setenv("SLIPWAY_LAB_DIR", str(tmp_path / "lab"))
    assert run("lab_up", hosts=hosts)[0] == code
    assert not (tmp_path / "lab").exists()


def test_the_bench_refuses_a_line_that_it_does_not_have(run):
    code, out, _ = run("bench_engine", lines="nosuch", json=True)
    assert (code, json.loads(out)["error"]["kind"]) == (19, "UsageError")


def test_a_lab_model_of_no_kind_is_refused(run):
    code, out, err = run("lab_model", kind="nosuch", out="m")
    assert (code, out) == (4, "")
    assert "good-v1, good-v2, nan or garbled" in err


def test_every_task_has_the_error_boundary():
    """
    A task made by invoke's own decorator would end in tracebacks.
    """
    tasks = importlib.import_module("tasks")
    source = Path(tasks.__file__).read_text()
    assert "@task" not in source
    assert source.count("@command(") >= 16


def test_a_task_that_breaks_ends_without_a_traceback(capsys, monkeypatch, tmp_path):
    """
    Negative control of all of the above: the boundary is what answers.
    """
    monkeypatch.setattr("deploy.cli.boundary._TRACEBACK", tmp_path / "traceback.txt")

    @deploy.cli.command.command(flags={"json": "x"})
    def broken(c, json=False):
        raise IsADirectoryError(21, "Is a directory", "reports")

    for as_json in (False, True):
        with pytest.raises(SystemExit) as ended:
            broken(MockContext(), json=as_json)
        out, err = capsys.readouterr()
        assert ended.value.code == 1
        assert "Traceback" not in err
        text = json.loads(out)["error"]["what"] if as_json else err
        assert "reports" in text


@pytest.mark.parametrize(
    ("task", "flag"), [("plan", "version"), ("release", "version"), ("rollback", "to")]
)
def test_a_release_that_is_named_by_nothing_is_refused(run, task, flag):
    """
    `inv release --version "$TAG"` with no TAG would release the newest bundle.
    """
    code, _, err = run(task, hosts=run.fleet, **{flag: ""})

    assert code == 19
    assert f"--{flag} : not valid" in err
