"""
Whether a row of the fleet file fits a host: refused before anything is touched, with what would do.
"""

from dataclasses import replace

import pytest

from deploy.inventory.schema.gpu import DriverSection
from deploy.provision.concerns import plan_resources
from deploy.provision.differences import refusal_of
from deploy.provision.requirements import Platform, PythonAvailable
from deploy.provision.resource_set import ResourceSet
from deploy.provision.row_fit import row_conflict
from deploy.units import format_size
from deploy.versions.catalog import load_catalog
from deploy.versions.matrix import load_matrix
from tests.unit.deploy.provision.builders import bare, make_facts, make_resources, make_spec
from tests.unit.deploy.provision.driver.builders import make_facts as driver_facts

EMPTY = ResourceSet(requirements=(), placed=(), running=())
H100 = "NVIDIA H100 80GB HBM3"


def conflict(row="torch-2.13-cu130", **facts):
    found = load_matrix().row(row)
    return row_conflict(
        make_facts(EMPTY, **facts),
        torch=found.minor,
        cuda=found.cuda or "cpu",
        python=found.python,
    )


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ("torch-2.13-cu130", {"driver": "580.95.05", "gpus": (H100,), "gpu_modules": "open"}),
        ("torch-2.13-cu130", {"driver": "580.95.05"}),
        ("torch-2.3-cu121", {"driver": "535.161.08", "gpus": ("Tesla T4",)}),
        ("torch-2.13-cu130", {"driver": "580.95.05", "gpus": ("a card of tomorrow",)}),
        ("torch-2.13-cu130", {"driver": "no version"}),
        ("torch-2.13-cpu", {"driver": "390.157", "gpus": ("Tesla T4",)}),
        ("torch-2.13-cpu-py313", {"codename": "trixie"}),
    ],
)
def test_a_row_that_fits_is_no_conflict(row, facts):
    """
    What a host says and the catalog does not know is left open, not refused.
    """
    assert conflict(row, **facts) is None


@pytest.mark.parametrize(
    ("row", "facts", "why", "nearest"),
    [
        ("torch-2.3-cu121", {"gpus": ("NVIDIA B200",), "driver": "580.95.05"},
         "no code for B200 (10.0)", "fits as the host is: torch-2.13-cu130, "),
        ("torch-2.13-cu130", {"gpus": (H100,), "driver": "470.256.02"},
         "needs driver 580.65.06 or later; the driver is 470.256.02", "another driver: 580"),
        ("torch-2.13-cu130", {"gpus": ("NVIDIA B200",), "driver": "580.95.05",
                              "gpu_modules": "proprietary"},
         "B200 (10.0) runs with open modules; the modules are proprietary",
         "the other kernel modules"),
        ("torch-2.13-cu130", {"gpus": (H100,), "driver": "535.161.08"},
         "driver 535.161.08 runs CUDA 13.0 with the package cuda-compat alone", "580.65.06"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_names_each_conflict_and_the_nearest_rows(row, facts, why, nearest):
    found = conflict(row, **facts)
    assert found is not None
    assert why in found.conflicts
    assert nearest in found.nearest


@pytest.mark.parametrize("row", ["torch-2.13-cu130", "torch-2.3-cu121"])
def test_a_reason_of_several_conflicts_is_named_once(row):
    """
    Here torch with the driver, and CUDA with the driver.
    """
    clauses = conflict(row, gpus=("Tesla K80", H100), driver="450.80.02").conflicts.split("; ")
    named = [clause for clause in clauses if not clause.startswith(("and ", "the driver is"))]
    assert len(named) == len(set(named)) > 1


@pytest.mark.parametrize(
    ("version", "modules", "why"),
    [
        ("580.178.04", "open", None),
        ("580.178.04", "proprietary", None),
        (
            "535.309.01",
            "open",
            "driver 535.309.01 runs CUDA 13.0 with the package cuda-compat alone",
        ),
        (None, "open", "NVIDIA driver 470.256.02; row torch-2.13-cu130 needs 580.65.06"),
    ],
)
def test_a_driver_that_the_run_replaces_does_not_refuse_its_host(version, modules, why):
    """
    The row is compared with the driver that the run installs, and with the loaded one without it.
    """
    spec = make_spec(row="torch-2.13-cu130", device="cuda", precision="bf16")
    section = DriverSection(version=version) if version else DriverSection()
    resources = plan_resources(replace(spec, driver=section))
    asked = driver_facts("noble")
    facts = bare(resources, driver="470.256.02", gpus=(H100,), gpu_modules=modules, gpu=asked.gpu)
    facts = replace(facts, os_id="ubuntu", codename="noble", paths=facts.paths | asked.paths)
    refusal = refusal_of(resources, facts)
    assert (refusal is None) is (why is None), refusal
    assert why is None or why in refusal.why


def test_a_bare_host_of_another_kind_is_refused_before_it_is_changed():
    """
    Also a GPU row on a host whose driver runs it with cuda-compat alone.
    """
    resources = make_resources(row="torch-2.13-cu130", device="cuda", precision="bf16")
    facts = {"driver": "580.95.05", "gpus": ("Tesla V100-SXM2-16GB",)}
    refusal = refusal_of(resources, bare(resources, **facts))
    assert refusal is not None
    assert refusal.why.startswith("row torch-2.13-cu130 does not fit: ")
    assert "V100 (7.0)" in refusal.why
    assert "inv matrix" in refusal.fix
    good = bare(resources, driver="580.95.05", gpus=(H100,))
    assert refusal_of(resources, good) is None  # negative control


@pytest.mark.parametrize("row", load_catalog().distributions, ids=lambda row: row.name)
def test_every_distribution_of_the_matrix_is_supported(row):
    """
    And none other, whatever it calls itself.
    """
    facts = {"os_id": row.name.rstrip("0123456789"), "codename": row.codename}
    assert Platform().refusal(make_facts(EMPTY, **facts)) is None
    assert "arm64" in Platform().refusal(make_facts(EMPTY, **facts, machine="arm64")).why
    assert "apt-get" in Platform().refusal(make_facts(EMPTY, **facts, has_apt=False)).why
    other = make_facts(EMPTY, os_id="mint", codename=row.codename)
    assert row.title in Platform().refusal(other).fix
    assert Platform().refusal(make_facts(EMPTY, os_id="debian", codename="bullseye"))


ROWS = {"torch-2.13-cpu": "3.11", "torch-2.13-cpu-py312": "3.12", "torch-2.13-cpu-py313": "3.13"}


@pytest.mark.parametrize(
    ("codename", "os_id", "pythons", "fix"),
    [
        ("bookworm", "debian", (), None),
        ("trixie", "debian", ("3.13",), "row: torch-2.13-cpu-py313"),
        ("trixie", "debian", ("3.11", "3.13"), None),
        ("noble", "ubuntu", (), "row: torch-2.13-cpu-py312"),
        ("jammy", "ubuntu", ("3.10",), "mirrors.python"),
    ],
)
def test_a_host_without_the_rows_python_is_told_the_row_for_its_own(codename, os_id, pythons, fix):
    needed = PythonAvailable(version="3.11", rows=ROWS)
    facts = make_facts(EMPTY, codename=codename, os_id=os_id, pythons=pythons)
    refusal = needed.refusal(facts)
    assert (refusal is None) is (fix is None)
    assert refusal is None or fix in refusal.fix
    assert needed.model_copy(update={"is_sent": True}).refusal(facts) is None


def test_the_room_for_an_environment_is_known_before_anything_is_sent():
    """
    The unpacked wheels and those that are to be sent; one byte less is refused.
    """
    resources = make_resources()
    [venv] = [one for one in resources.placed if one.kind == "venv"]
    need = 190_000_000 + 700_000_000

    def refusal(free):
        room = {"/opt/slipway": free, "/var/lib/slipway": 2**40}
        return venv.refusal(bare(resources, room=room))

    assert refusal(need) is None
    assert refusal(need - 1).error == "DiskTooSmall"
    assert f"the Python environment takes {format_size(need)}" in refusal(need - 1).why
