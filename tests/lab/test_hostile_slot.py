"""
A slot with an intruder: it has code execution as the user of its slot, on a booted host.

Releases and rollbacks replace it within their deadlines, and the other slot serves all the time.
What the intruder does is in hostile_runtime.py.
"""

import json
import shutil
import time
from pathlib import Path

import pytest

from deploy.demo.load import LoadGenerator
from deploy.lab import lab
from deploy.wiring import bundles, checkout, lab_models
from tests.lab.conftest import IS_LONG, say
from tests.lab.own_lab import booted_lab, fleet_document, inv, write_fleet_file

ROOT = Path(__file__).parents[2]
HOST = "n1"
DRAIN_S, START_S = 5, 90
STATE_MIB = TMP_MIB = 48


@pytest.fixture(scope="module")
def config():
    with booted_lab("hostile", 1) as config:
        yield config


@pytest.fixture(scope="module")
def fleet(config, tmp_path_factory):
    """
    The path of the fleet file.
    """
    document = fleet_document(
        config,
        (HOST,),
        service={
            "memory_max": "2GiB",
            "state_max": f"{STATE_MIB}MiB",
            "tmp_max": f"{TMP_MIB}MiB",
            "start_timeout": f"{START_S}s",
        },
        release={
            "canary": {"duration": "2s", "give_up_after": "20s", "min_requests": 1},
            "drain_timeout": f"{DRAIN_S}s",
            "lease_ttl": "15s",
            "gates": {"http_request_error_rate": {"action": "revert"}},
        },
    )
    return write_fleet_file(tmp_path_factory.mktemp("hostile") / "hostile.yml", document)


def on_host(config, *argv):
    return lab.inside(HOST, list(argv), config=config).stdout


def serving(fleet):
    document, _ = inv(fleet, "status")
    [host] = document["hosts"]
    return {s["version"]: s["weight_pct"] for s in host["slots"] if s["weight_pct"]}


def slot_of(fleet, version):
    document, _ = inv(fleet, "status")
    [host] = document["hosts"]
    [slot] = [s["slot"] for s in host["slots"] if s["version"] == version]
    return slot


def make_bundle(fleet, tree, model, version, mode=None, payload="hostile_runtime.py"):
    """
    Build and sign a bundle whose runtime is *payload*, if there is a *mode*; return its digest.
    """
    patched = pytest.MonkeyPatch()
    if mode is not None:
        runtime = tree / version / "runtime"
        shutil.copytree(ROOT / "runtime", runtime, ignore=shutil.ignore_patterns("__pycache__"))
        (runtime / "__main__.py").rename(runtime / "honest.py")
        shutil.copy(ROOT / "tests" / "lab" / payload, runtime / "__main__.py")
        (runtime / "mode.py").write_text(f"MODE = {mode!r}\n")
        patched.setattr(bundles, "ROOT", tree / version)
    try:
        return bundles.make_bundle(checkout.fleet(str(fleet)), model, version, say).digest
    finally:
        patched.undo()


@pytest.fixture(scope="module")
def models():
    return [lab_models.make_lab_model(kind, None, say) for kind in ("good-v1", "good-v2")]


@pytest.fixture(scope="module")
def served(fleet, models, tmp_path_factory):
    """
    v1.0.0 serves; the digests of all bundles by version, since an earlier run used the same names.
    """
    tree = tmp_path_factory.mktemp("trees")
    inv(fleet, "provision", "--yes")
    kinds = {
        "v1.0.0": (models[0], None),
        "v2.0.0": (models[1], None),
        "v6.0.0": (models[0], "start"),
        "v6.1.0": (models[0], "link"),
        "v6.2.0": (models[1], "trigger"),
    }
    digests = {v: make_bundle(fleet, tree, model, v, mode) for v, (model, mode) in kinds.items()}
    inv(fleet, "release", "--version", digests["v1.0.0"], "--yes")
    assert serving(fleet) == {"v1.0.0": 100}
    yield digests
    for digest in digests.values():
        shutil.rmtree(checkout.store().get(digest, "hostile").directory)


@pytest.fixture
def traffic(config, served, models):
    """
    Start live traffic and return its generator; requests to a hostile slot end at *timeout_s*.
    """
    prompts = json.loads((models[0] / "live_prompts.json").read_text())
    started = []

    def start(timeout_s=60.0):
        generator = LoadGenerator(
            [f"http://{config.address(HOST)}:8000"],
            prompts=prompts,
            rate_rps=8,
            connections=32,
            streams=2,
            max_tokens=8,
            timeout_s=timeout_s,
            networks=(config.subnet,),
        )
        started.append(generator)
        generator.start()
        return generator

    yield start
    for generator in started:
        generator.stop()


def assert_none_lost(generator):
    report = generator.stop()
    assert report.requests > 10
    assert (report.lost_requests, report.cut_streams) == (0, 0), report.losses


def report_of(config, slot):
    """
    Return what the intruder in *slot* tried last, and how it ended.
    """
    unit = f"slipway-runtime@{slot}"
    log = on_host(config, "journalctl", "--no-pager", "--output=cat", "-u", unit)
    lines = [line for line in log.splitlines() if line.startswith("REPORT ")]
    assert lines, log[-2000:]
    return json.loads(lines[-1].removeprefix("REPORT "))


def assert_contained(config, tried):
    assert tried["signals"] == []
    assert tried["memories"] == []
    assert tried["shared_memory"] is False
    refused = {"EACCES", "EPERM", "ENOENT", "EROFS"}
    for name in (
        *("connect_other", "connect_other_private", "connect_haproxy", "connect_systemd"),
        *("connect_dbus", "link_public", "unlink_public", "link_private", "rename_home"),
        *("write_release", "write_state", "read_secrets", "write_lock"),
    ):
        assert tried[name] in refused, (name, tried[name])
    assert tried["read_weights"] == "done", "control: the report would notice what succeeds"
    mib = {path: size / 2**20 for path, size in tried["filled"].items()}
    assert all(0 < size <= TMP_MIB for size in mib.values()), mib


def assert_nothing_is_left(config, slot):
    """
    No process, no mount, no file of the slot.
    """
    count = on_host(config, "sh", "-c", f"ps -o pid= -u slipway-{slot} | wc -l")
    assert count.strip() == "0"
    assert f"/run/slipway/private/{slot}" not in on_host(config, "cat", "/proc/mounts")


def wait_for_report(config, slot):
    until_s = time.monotonic() + 90
    while time.monotonic() < until_s:
        log = on_host(config, "journalctl", "--no-pager", "--output=cat", "-g", "^REPORT",
                      "-u", f"slipway-runtime@{slot}")  # fmt: skip
        if "REPORT" in log:
            return
        time.sleep(0.5)
    pytest.fail("the intruder has not reported")


def test_a_hostile_release_is_reverted_and_nothing_is_lost(config, fleet, served, traffic):
    """
    It is READY and answers golden prompts drop by drop, fills what it can, forks, ignores SIGTERM
    and extends its stop for ever.
    """
    load = traffic()

    outcome, took_s = inv(fleet, "release", "--version", served["v6.0.0"], "--yes", wanted=(24,))

    assert outcome["outcome"] == "reverted"
    assert took_s < START_S + 60 + 3 * DRAIN_S + 60  # start, golden prompts, drain and stop, slack
    assert serving(fleet) == {"v1.0.0": 100}
    slot = next(s for s in ("blue", "green") if s != slot_of(fleet, "v1.0.0"))
    assert_contained(config, report_of(config, slot))
    assert_nothing_is_left(config, slot)
    assert_none_lost(load)


def test_a_link_in_place_of_its_socket_ends_the_start(config, fleet, served, traffic):
    """
    Neither HAProxy nor the host program follows it to the other slot.
    """
    load = traffic()

    outcome, _ = inv(fleet, "release", "--version", served["v6.1.0"], "--yes", wanted=(24,))

    assert outcome["outcome"] == "reverted"
    assert "did not start" in outcome["reason"]
    assert serving(fleet) == {"v1.0.0": 100}
    assert_none_lost(load)


@pytest.mark.parametrize("way", ["release", "rollback"] if IS_LONG else ["rollback"])
def test_a_hostile_serving_slot_is_replaced(config, fleet, served, traffic, way):
    """
    It was promoted as an honest release, and is taken over afterwards.  Its own requests are lost;
    from the moment that the other slot serves, none is.
    """
    before, load = serving(fleet), traffic()
    # In both ways: the bundles take turns.
    inv(fleet, "release", "--version", served["v6.2.0"], "--allow-older", "--yes")
    assert serving(fleet) == {"v6.2.0": 100}
    assert_none_lost(load)
    slot = slot_of(fleet, "v6.2.0")
    on_host(config, "sh", "-c", f"touch /run/slipway/private/{slot}/home/go")
    wait_for_report(config, slot)
    load = traffic(timeout_s=10.0)

    if way == "release":
        version = ("--version", served["v2.0.0"], "--canary", "50", "--allow-older")
        outcome, took_s = inv(fleet, "release", *version, "--yes")
        assert outcome["outcome"] == "promoted"
    else:
        outcome, took_s = inv(fleet, "rollback", "--yes")
        assert outcome["outcome"] == "rolled_back"

    assert took_s < START_S + 60 + 3 * DRAIN_S + 60
    assert serving(fleet) == ({"v2.0.0": 100} if way == "release" else before)
    load.stop()
    after = traffic()
    time.sleep(5)
    assert_none_lost(after)
    assert_contained(config, report_of(config, slot))
    assert_nothing_is_left(config, slot)


def test_a_power_cut_brings_the_slot_and_its_files_back(config, fleet, served, traffic):
    """
    Its file system, its socket and HAProxy's way to it are made again at boot.
    """
    before = serving(fleet)
    lab.crash(HOST, progress=say, config=config)
    lab.start(HOST, progress=say, config=config)

    def health():
        [host] = inv(fleet, "status", wanted=(0, 26))[0]["hosts"]
        return {s["health"] for s in host["slots"] if s["weight_pct"]}

    until_s = time.monotonic() + START_S
    while (last := health()) != {"ok"}:
        assert time.monotonic() < until_s, last
        time.sleep(1)
    time.sleep(2)  # HAProxy's checks
    load = traffic()
    time.sleep(5)
    assert_none_lost(load)
    assert serving(fleet) == before
