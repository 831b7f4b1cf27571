import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cli.matrix_report import answer
from deploy.versions.catalog import load_catalog
from deploy.versions.host_output import COMMAND, parse_host
from deploy.versions.resolution import HostFacts

HOSTS = Path(__file__).with_name("hosts")


def parsed(text):
    return parse_host(load_catalog(), text)


@pytest.mark.parametrize(
    ("file", "driver", "gpus", "system", "modules", "has_nvswitch"),
    [
        ("h100_debian12_open", "580.95.05", ["H100"], "debian12", "open", True),
        ("t4_ubuntu2204_proprietary", "535.161.08", ["T4"], "ubuntu2204", "proprietary", False),
        ("h100_ubuntu2404_vm", "580.159.04", ["H100"], "ubuntu2404", "open", False),
        ("bare_debian13", None, [], "debian13", None, False),
    ],
)
def test_a_host_says_what_it_has(file, driver, gpus, system, modules, has_nvswitch):
    """
    From texts in the formats of /etc/os-release and /proc/driver/nvidia.

    A virtual machine said h100_ubuntu2404_vm on 2026-11-27, without its UUID; the others are
    written by hand.
    """
    facts = parsed((HOSTS / f"{file}.txt").read_text())
    assert facts.driver == driver
    assert [gpu.name for gpu in facts.gpus] == gpus
    assert facts.distribution.name == system
    assert facts.modules == modules
    assert facts.has_nvswitch is has_nvswitch


@pytest.mark.parametrize(
    "text",
    [
        "",
        "==driver\n==modules\n==gpus\n==nvswitch\n",
        "\x00\udcff ID=debian\nVERSION_ID=\n==gpus\nModel: \x1b[2J\n",
        "ID=debian\nVERSION_ID=99\n==driver\n580.95.05; rm\n==modules\nx\n==gpus\nModel: MI300\n",
        "==nvswitch\n==driver\n580\n",
    ],
)
def test_nonsense_is_not_known(text):
    """
    No traceback, and no value that the catalog lacks.
    """
    assert replace(parsed(text), unknown={}) == HostFacts()


def test_what_the_catalog_lacks_of_a_host_is_named_in_the_answer(monkeypatch):
    """
    Left out in silence, every row would seem to fit its GPU.  What a flag says instead is known.
    """
    facts = parsed(
        "ID=debian\nVERSION_ID=99\n==driver\n==modules\n==gpus\n"
        "Model: NVIDIA X1\nModel: NVIDIA \x1b[2J\n"
    )
    assert facts.unknown == {"gpu": "NVIDIA X1, NVIDIA \x1b[2J", "os": "debian99"}
    monkeypatch.setattr("deploy.wiring.host_facts.read_host", lambda *_: facts)
    asked = {"torch": "2.13", "cuda": "", "python": ""}
    for gpu, count in (("", 2), ("9.0", 1)):
        known = {"driver": "", "gpu": gpu, "os": ""}
        found = answer(asked, known, host="n1", fleet="lab")
        texts = [t for t in found.resolution.warnings if t.startswith("not in the matrix")]
        assert len(texts) == count
        assert "\x1b" not in "".join(texts)
        assert texts[0] in found.table().notes


def test_the_command_is_understood_by_a_shell_and_its_parser():
    """
    On this machine: it ends with 0 whatever is missing, with every section.
    """
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=120, check=True)
    assert [f"=={name}" in done.stdout for name in ("driver", "modules", "gpus", "nvswitch")] == [
        True
    ] * 4
    assert isinstance(parsed(done.stdout), HostFacts)
