"""
Fixtures of the tests that boot hosts.  They need root and a machine that can run the lab.

On another machine the tests fail; with SLIPWAY_LAB=skip they are skipped, with the reason.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.drill.cell_run import CellRunner
from deploy.drill.checkout import copy_checkout
from deploy.drill.drill_lab import MODELS, DrillLab
from deploy.drill.etcd_server import EtcdServer, etcd_server
from deploy.errors import LabError
from deploy.lab import lab
from deploy.lab.config import LabConfig, LabStatus
from deploy.wiring import lab_models
from deploy.wiring.checkout import ROOT
from tests.lab.one_lab_a_worker import OneLabAWorker

HERE = Path(__file__).parent
# Each takes minutes on a quiet machine.  SLIPWAY_LAB_LONG=1 runs them too.
IS_LONG = bool(os.environ.get("SLIPWAY_LAB_LONG"))
collect_ignore = (
    []
    if IS_LONG
    else [
        "test_acme.py",
        "test_data_disk.py",
        "test_interrupted.py",
        "test_bad_canaries.py",
        "test_real_model.py",
        "test_reboot_waves.py",
        "test_slow_clients.py",
        "test_tampering.py",
        "test_trees.py",
        "test_door.py",
        "test_upgrade.py",
        "test_ways_in.py",
    ]
)
# Hundreds of megabytes and ten minutes of two cores: `inv test --driver` alone runs it.
if not os.environ.get("SLIPWAY_LAB_DRIVER"):
    collect_ignore.append("test_driver.py")
HOSTS = 4
DRILL_LAB = 8  # number of the tests' lab of the drill; `inv drill` has lower ones


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.lab)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneLabAWorker:
    return OneLabAWorker(config, log)


def say(text: str) -> None:
    """
    Print the progress of a lab command to the test's output.
    """
    sys.stderr.write(f"lab: {text}\n")


def bring_up(hosts: int, config: LabConfig) -> LabStatus:
    """
    Boot *hosts*; if the lab cannot run here, fail or skip the test as SLIPWAY_LAB says.
    """
    try:
        return lab.up(hosts, progress=say, config=config)
    except LabError as error:
        if os.environ.get("SLIPWAY_LAB") == "skip":
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def lab_hosts() -> Iterator[LabStatus]:
    """
    The default lab with four hosts.  Afterwards it is up or down as it was before.
    """
    config = LabConfig.from_env(os.environ)
    was_up = any(host.leader for host in lab.status(config=config).hosts)
    yield bring_up(HOSTS, config)
    if not was_up:
        lab.down(progress=say, config=config)


@pytest.fixture(scope="session")
def spare_config() -> LabConfig:
    """
    Config of a second lab that tests may break; it shares the base tree of the default lab.
    """
    default = LabConfig.from_env(os.environ)
    return LabConfig(
        directory=default.directory.with_name("lab-spare"),
        bases=default.bases,
        bridge="slipt",
        prefix="10.77.78",
    )


@pytest.fixture(scope="module")
def spare(spare_config: LabConfig) -> Iterator[LabConfig]:
    """
    The spare lab with two running hosts.
    """
    bring_up(2, spare_config)
    yield spare_config
    lab.down(progress=say, config=spare_config)


@pytest.fixture
def lab_down(spare_config: LabConfig) -> Iterator[LabConfig]:
    """
    Config of the spare lab, which is down before and after the test.
    """
    lab.down(progress=say, config=spare_config)
    yield spare_config
    lab.down(progress=say, config=spare_config)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """
    Poll a function until it returns the expected value; on timeout fail with its last value.
    """
    import time

    def wait(observe: Callable[[], object], expected: object, *, timeout_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while (last := observe()) != expected:
            if time.monotonic() > deadline_s:
                pytest.fail(f"expected {expected!r} within {timeout_s:.0f} s, last got {last!r}")
            time.sleep(0.1)

    return wait


@pytest.fixture(scope="session", params=["hosts", "etcd"] if IS_LONG else ["hosts"])
def drill(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CellRunner]:
    """
    A lab of the drill with two hosts under traffic, and two checkouts that have its key.

    Its desired state lives on the hosts or, with SLIPWAY_LAB_LONG=1, also in an etcd.
    """
    work = tmp_path_factory.mktemp("drill")
    with contextlib.ExitStack() as stack:
        is_etcd = request.param == "etcd"
        etcd = stack.enter_context(etcd_server(work / "etcd")) if is_etcd else None
        yield from _drill_runner(work, etcd)


def _drill_runner(work: Path, etcd: EtcdServer | None) -> Iterator[CellRunner]:
    models = [lab_models.make_lab_model(kind, None, say) for kind in MODELS]
    first, second = (copy_checkout(ROOT, work / name) for name in ("first", "second"))
    on = DrillLab(DRILL_LAB, 2, (models[0], models[1]), work, say, etcd)
    try:
        on.up(first)
    except LabError as error:
        if os.environ.get("SLIPWAY_LAB") == "skip":
            pytest.skip(str(error))
        raise
    runner = CellRunner(on, first, second, say)
    runner.injector.prepare()
    yield runner
    on.down()
