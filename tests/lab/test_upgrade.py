"""
Hosts that the release before the host program's protocol had a schema provisioned: upgraded in
place, with a release and a rollback across the upgrade.

The earlier release is taken from this repository's history and run as it was.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.demo.load import LoadGenerator
from deploy.wiring import checkout, lab_models
from tests.lab.conftest import say
from tests.lab.own_lab import booted_lab, fleet_document, lab_config, write_fleet_file

ROOT = Path(__file__).parents[2]
BEFORE = "1c22af696b9e3c0e7d200d43ce31e94103d026eb"
HOSTS = ("n1", "n2")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """
    The checkout of the earlier release.
    """
    known = subprocess.run(["git", "cat-file", "-e", f"{BEFORE}^{{commit}}"], cwd=ROOT, check=False)
    if known.returncode != 0:
        pytest.skip(
            f"the history of this clone does not reach {BEFORE[:12]}: git fetch --unshallow"
        )
    tree = tmp_path_factory.mktemp("before")
    archive = subprocess.run(
        ["git", "archive", BEFORE], cwd=ROOT, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    return tree


@pytest.fixture(scope="module")
def fleet(before):
    """
    A lab of its own with two hosts, and its fleet file for both releases; the path of the file.
    """
    with booted_lab("upgrade", len(HOSTS)) as config:
        document = fleet_document(
            config,
            HOSTS,
            release={
                "canary": {"duration": "2s", "give_up_after": "20s", "min_requests": 1},
                "lease_ttl": "15s",
            },
        )
        yield write_fleet_file(before / "inventories" / "upgrade.yml", document)


def inv(tree, *args, wanted=0):
    """
    Run a task of the release in *tree* with --json and return its document.
    """
    completed = subprocess.run(
        [sys.executable, "-m", *_program(tree), *args, "--json"],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    output = f"exit {completed.returncode}\n{completed.stdout}\n{completed.stderr}"
    assert completed.returncode == wanted, output
    return json.loads(completed.stdout)


def _program(tree):
    return ["deploy.cli"] if (tree / "deploy" / "cli" / "__main__.py").exists() else ["invoke"]


def versions(tree, fleet):
    document = inv(tree, "status", "--hosts", str(fleet))
    return {
        host["host"]: {s["version"]: s["weight_pct"] for s in host["slots"] if s["weight_pct"]}
        for host in document["hosts"]
    }


@pytest.fixture(scope="module")
def models():
    return [lab_models.make_lab_model(kind, None, say) for kind in ("good-v1", "good-v2")]


@pytest.fixture(scope="module")
def served_before(before, fleet, models):
    """
    The hosts serve v1.0.0, provisioned, bundled and released by the earlier release.
    """
    inv(before, "provision", "--hosts", str(fleet), "--yes")
    name = ("--version", "v1.0.0", "--hosts", str(fleet))
    inv(before, "bundle", "--model", str(models[0]), *name)
    inv(before, "release", "--yes", *name)
    assert versions(before, fleet) == {key: {"v1.0.0": 100} for key in HOSTS}


@pytest.fixture
def load(fleet, models):
    """
    Live traffic on both hosts.
    """
    hosts = yaml.safe_load(fleet.read_text())["hosts"]
    port = checkout.fleet(str(fleet)).service.port
    prompts = json.loads((models[0] / "live_prompts.json").read_text())
    generator = LoadGenerator(
        [f"http://{host['address']}:{port}" for host in hosts.values()],
        prompts=prompts,
        rate_rps=20,
        connections=4,
        streams=2,
        max_tokens=8,
        is_chat=False,  # the earlier runtime has no chat
        networks=(lab_config("upgrade").subnet,),
    )
    generator.start()
    yield generator
    generator.stop()


def test_the_upgrade_names_its_remedy_and_loses_nothing(before, fleet, served_before, models, load):
    """
    Before it, every command of this release names `inv provision`; it is done in place, and after
    it a release and a rollback cross it in both directions, without a lost request.
    """
    hosts = ("--hosts", str(fleet))
    status = inv(ROOT, "status", *hosts, wanted=26)
    assert {finding["host"] for finding in status["findings"]} == set(HOSTS)
    for host in status["hosts"]:
        assert host["reachable"]
        assert "another release of slipway" in host["error"]["what"]
        assert host["error"]["fix"].startswith("inv provision")
    error = inv(ROOT, "rollback", "--yes", *hosts, wanted=3)["error"]
    assert "another release of slipway" in error["why"]

    provisioned = inv(ROOT, "provision", "--yes", *hosts)
    assert not provisioned["failed"]
    assert versions(ROOT, fleet) == {key: {"v1.0.0": 100} for key in HOSTS}
    again = inv(ROOT, "provision", "--yes", *hosts)
    assert again["changes"] == []
    assert not inv(ROOT, "verify", *hosts)["failed"]

    name = ("--version", "v1.1.0", *hosts)
    inv(ROOT, "bundle", "--model", str(models[1]), *name)
    released = inv(ROOT, "release", "--canary", "10", "--yes", *name)
    assert released["outcome"] == "promoted"
    assert versions(ROOT, fleet) == {key: {"v1.1.0": 100} for key in HOSTS}

    rolled_back = inv(ROOT, "rollback", "--yes", *hosts)
    assert rolled_back["outcome"] == "rolled_back"
    assert rolled_back["evidence"]["to"].endswith("v1.0.0")
    assert versions(ROOT, fleet) == {key: {"v1.0.0": 100} for key in HOSTS}

    report = load.stop()
    assert report.requests > 100
    assert (report.lost_requests, report.cut_streams) == (0, 0), report.losses


def test_an_earlier_controller_is_refused_by_an_upgraded_host(before, fleet):
    """
    Nothing is touched, and the refusal names the difference.  Runs after the upgrade above.
    """
    status = inv(before, "status", "--hosts", str(fleet))

    for host in status["hosts"]:
        assert "speaks another protocol" in host["error"]["what"]
