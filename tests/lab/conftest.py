"""
Tests of booted hosts.  They need root and a machine that can run the lab.

A machine that can't fails them; SLIPWAY_LAB=skip makes that a skip, which says why.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.errors import LabError
from deploy.lab import lab
from deploy.lab.config import LabConfig, LabStatus

HERE = Path(__file__).parent
HOSTS = 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.lab)


def say(text: str) -> None:
    """
    Show a lab command's progress with the test's output.
    """
    sys.stderr.write(f"lab: {text}\n")


def bring_up(hosts: int, config: LabConfig) -> LabStatus:
    """
    Boot *hosts*, or end the test as SLIPWAY_LAB says.
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
    The default lab with four hosts, left as it was found: up or down.
    """
    config = LabConfig.from_env(os.environ)
    was_up = any(host.leader for host in lab.status(config=config).hosts)
    yield bring_up(HOSTS, config)
    if not was_up:
        lab.down(progress=say, config=config)


@pytest.fixture(scope="session")
def spare_config() -> LabConfig:
    """
    A lab beside the default one, to be broken; it shares the base tree.
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
    The spare lab with two hosts that run.
    """
    bring_up(2, spare_config)
    yield spare_config
    lab.down(progress=say, config=spare_config)


@pytest.fixture
def nothing(spare_config: LabConfig) -> Iterator[LabConfig]:
    """
    The spare lab, down before and after.
    """
    lab.down(progress=say, config=spare_config)
    yield spare_config
    lab.down(progress=say, config=spare_config)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """
    Wait for a condition with a deadline; on timeout show what was seen last.
    """
    import time

    def wait(seen: Callable[[], object], wanted: object, *, timeout_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while (last := seen()) != wanted:
            if time.monotonic() > deadline_s:
                pytest.fail(f"wanted {wanted!r} within {timeout_s:.0f} s, last saw {last!r}")
            time.sleep(0.1)

    return wait
