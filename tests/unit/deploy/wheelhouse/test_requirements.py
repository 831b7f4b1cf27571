"""
The locks that are shipped, as the rows of the matrix take them.
"""

import re

import pytest

from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import lock_digest, lock_text, uv_program
from deploy.wheelhouse.fetch import REQUIREMENTS
from deploy.wheelhouse.renew import lock_commands

LOCKED = [row for row in load_matrix().rows if row.lock]
# What runtime/kernels needs on a GPU: docs/reference/engine.md.
ENGINE = {"torch": (2, 10), "triton": (3, 6)}
ADDRESS = re.compile(r"://|--(?:extra-)?index|--find-links|(?<![\w.-])/\w")


def pins(*names):
    """
    Return the versions that the lock files *names* pin together, by project.
    """
    text = lock_text(*((REQUIREMENTS / name).read_text(encoding="utf-8") for name in names))
    return dict(line.split()[0].split("==") for line in text.splitlines())


def too_old_for_the_engine(pinned):
    """
    Yield the projects that *pinned* lacks, or has from before what the kernels need.
    """
    for project, oldest in ENGINE.items():
        version = tuple(int(part) for part in pinned.get(project, "0").split("+")[0].split("."))
        if version < oldest:
            yield project


@pytest.mark.parametrize("row", LOCKED, ids=lambda row: row.name)
def test_the_lock_of_a_row_is_usable(row):
    """
    With the runtime's lock it makes one text: the row's torch, every project once, all hashed.
    """
    assert re.fullmatch("[0-9a-f]{64}", lock_digest(row))


def test_rows_do_not_share_an_environment():
    """
    A host that changes its row gets another venv.
    """
    assert len({lock_digest(row) for row in LOCKED}) == len(LOCKED) > 1


@pytest.mark.parametrize("row", [r for r in LOCKED if r.needs_gpu], ids=lambda row: row.name)
def test_the_engine_runs_on_every_gpu_row_that_can_be_provisioned(row):
    """
    Its torch and Triton are new enough, and Triton is the one that the kernels are tested with.
    """
    pinned = pins(row.runtime_lock, row.lock)
    assert list(too_old_for_the_engine(pinned)) == []
    control = (REQUIREMENTS / "control.lock").read_text(encoding="utf-8")
    assert f"triton=={pinned['triton']} ;" in control


@pytest.mark.parametrize(
    ("pinned", "wrong"),
    [
        ({"torch": "2.3.1", "triton": "3.7.1"}, ["torch"]),
        ({"torch": "2.13.0", "triton": "2.3.1"}, ["triton"]),
        ({"torch": "2.13.0+cpu"}, ["triton"]),
        ({"torch": "2.10.0", "triton": "3.6.0"}, []),
    ],
)
def test_what_the_engine_lacks_would_be_noticed(pinned, wrong):
    """
    Negative control: an old torch, an old Triton, and none at all.
    """
    assert list(too_old_for_the_engine(pinned)) == wrong


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.iterdir()), ids=lambda path: path.name)
def test_no_address_is_in_what_is_shipped(path):
    """
    Where packages come from is each machine's own affair; the hashes say what they are.
    """
    assert ADDRESS.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch @ https://example.com/torch.whl",
        "--index-url packages.example.com",
        "--find-links wheels",
        "#    uv pip compile /home/ann/requirements/torch.in",
    ],
)
def test_an_address_would_be_noticed(line):
    """
    Negative control: hosts, options and paths of one machine.
    """
    assert ADDRESS.search(line)


@pytest.mark.parametrize(
    ("name", "command"),
    lock_commands(load_matrix().rows).items(),
    ids=lambda value: str(value)[:40],
)
def test_a_lock_was_made_by_the_command_that_renews_it(name, command):
    """
    uv writes its command into the first lines.
    """
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    assert f"#    uv {' '.join(command)}\n" in text


def test_the_uv_of_hosts_is_the_one_of_the_control_machine():
    """
    The hash of its wheel is one of control.lock; a renewed control.lock needs a renewed uv.lock.
    """
    version, option = uv_program().pin.split()
    control = (REQUIREMENTS / "control.lock").read_text(encoding="utf-8")
    entry = control[control.index("\nuv==") :].split("# via")[0]
    assert entry.startswith(f"\n{version} ")
    assert option in entry


def test_torch_and_cuda_are_the_same_on_every_python_of_a_row():
    rows = [row for row in LOCKED if row.needs_gpu]
    pinned = [pins(row.lock) for row in rows]
    assert len({tuple(sorted(one)) for one in pinned}) == 1 < len(rows)
    names = ("torch", "triton", "cuda-toolkit", "nvidia-cudnn-cu13", "nvidia-nccl-cu13")
    assert len({tuple(one[name] for name in names) for one in pinned}) == 1
