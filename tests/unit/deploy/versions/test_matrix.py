import pytest

from deploy.errors import InventoryError
from deploy.versions.matrix import load_matrix


def test_the_rows_of_the_first_day_are_there():
    """
    The lab's row and the three GPU rows that the project began with can be named.
    """
    names = {row.name for row in load_matrix().rows}
    assert {"torch-2.13-cpu", "torch-1.13-cu117", "torch-2.0-cu118", "torch-2.3-cu121"} <= names


@pytest.mark.parametrize(
    ("name", "cuda", "driver"),
    [
        ("torch-1.13-cu117", "11.7", "515"),
        ("torch-2.0-cu118", "11.8", "525"),
        ("torch-2.3-cu121", "12.1", "535"),
        ("torch-2.13-cu130", "13.0", "580.65.06"),
    ],
)
def test_gpu_rows_hold_the_policy(name, cuda, driver):
    """
    CUDA and the oldest allowed driver are those of the policy.
    """
    row = load_matrix().row(name)
    assert (row.cuda, row.driver_min) == (cuda, driver)
    assert {"7.5", "8.0", "8.6", "8.9"} <= set(row.capabilities)


# Source: NVIDIA CUDA Compatibility, minor version table, read 2026-11-22.
FLOORS = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}


def asks_for_too_little(row):
    """
    Return whether some driver that *row* allows cannot run its CUDA at all.
    """
    floors = [FLOORS[row.cuda.split(".")[0]], *([row.driver_floor] if row.driver_floor else [])]
    return not all(
        row.model_copy(update={"driver_min": floor}).allows_driver(row.driver_min)
        for floor in floors
    )


def test_no_row_allows_a_driver_below_nvidias_floor():
    """
    Policy may ask for more than NVIDIA does, and never for less.
    """
    assert [r.name for r in load_matrix().rows if r.needs_gpu and asks_for_too_little(r)] == []


@pytest.mark.parametrize("driver", ["580", "580.65.05", "575.57.08"])
def test_a_driver_below_the_floor_would_be_noticed(driver):
    """
    Negative control: also a bare branch, whose first drivers are too old.
    """
    row = load_matrix().row("torch-2.13-cu130")
    assert asks_for_too_little(row.model_copy(update={"driver_min": driver}))


def test_every_row_says_where_it_comes_from():
    """
    No row is without sources, and no name disagrees with its torch and build.
    """
    for row in load_matrix().rows:
        assert row.sources, row.name
        short = ".".join(row.torch.split(".")[:2])
        tag = f"py{row.python.replace('.', '')}"
        assert row.name in (f"torch-{short}-{row.build}", f"torch-{short}-{row.build}-{tag}")


def test_an_unknown_row_names_the_nearest():
    """
    A row that is not there is refused with the ones that would do.
    """
    with pytest.raises(InventoryError) as caught:
        load_matrix().row("torch-2.3-cu12")
    assert "torch-2.3-cu121" in caught.value.fix


@pytest.mark.parametrize(
    ("driver", "allowed"),
    [("535", True), ("535.104.05", True), ("550.54", True), ("530.30.02", False), ("99", False)],
)
def test_drivers_are_compared_as_numbers(driver, allowed):
    """
    99 is older than 535, whatever the alphabet says.
    """
    assert load_matrix().row("torch-2.3-cu121").allows_driver(driver) is allowed


def test_a_row_without_cuda_asks_for_no_driver():
    """
    The CPU row runs with any driver and with none.
    """
    row = load_matrix().row("torch-2.13-cpu")
    assert not row.needs_gpu
    assert row.allows_driver("1")


def test_a_row_for_a_further_python_differs_in_nothing_else():
    """
    It has locks of its own.
    """
    matrix = load_matrix()
    for name in ("torch-2.13-cpu", "torch-2.13-cu130"):
        first = matrix.row(name)
        family = [row for row in matrix.rows if row.family == first.family]
        assert [row.python for row in family] == ["3.11", "3.12", "3.13", "3.14"]
        assert len({row.lock for row in family}) == len({row.runtime_lock for row in family}) == 4
        own = {"name", "python", "lock", "runtime_lock"}
        assert {row.model_dump_json(exclude=own) for row in family} == {
            first.model_dump_json(exclude=own)
        }
