"""
Whether the torch of a new environment is the row's, and computes on the GPUs what the CPU does.

Both run in the sandbox, as the build user; the second sees the GPUs of the host.  Where no GPU can
be used yet, the environment is marked, and the second is made up for once one can.
"""

from __future__ import annotations

import re
from pathlib import Path

from deploy.host import layout as paths
from deploy.host import tree
from deploy.host.bundle.sandbox import command, sandboxed
from deploy.host.bundle.takeover import FILE_MODE
from deploy.host.files import locked, remove, sync_directory, write_atomic
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.reboot_reasons import waits_for_driver
from deploy.host.system import ProgramResult, System
from deploy.host.text import one_line
from deploy.host.torch_mark import differed_text, mark_text, read_mark

_TELL = "import torch; print(torch.__version__, torch.version.cuda, sep='\\n')"
_VERSION_S = 300.0
_GPU_S = 300.0  # the first use of a GPU may load a driver and compile
_START_S = 120.0  # while slots wait; the unit TORCH_UNIT ends after twice as long
_LOCK_S = 10.0
_MARGIN_S = 15.0  # for systemd, beyond the time limit of the program
# A sum of 256 products of fp32 differs by about 1e-5 between two orders of summing.
_COMPARE = """\
import os, torch
torch.backends.cuda.matmul.allow_tf32 = False
a, b = torch.randn(256, 256), torch.randn(256, 256)
wanted, count = a @ b, torch.cuda.device_count()
limit = os.environ.get("CUDA_VISIBLE_DEVICES")
named = "" if limit is None else f"; CUDA_VISIBLE_DEVICES is {limit!r} in systemd's environment"
assert count, f"torch sees no GPU{named}"
# cuBLAS has words of its own, where the context fits and its workspace does not.
NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
full = []
for number in range(count):
    device = f"cuda:{number}"
    try:
        found = (a.to(device) @ b.to(device)).cpu()
    except RuntimeError as error:
        if not any(said in str(error) for said in NO_MEMORY):
            raise
        full.append(number)
        continue
    worst = (found - wanted).abs().max().item()
    assert worst < 0.01, f"a product on GPU {number} differs from the CPU's by {worst:.3g}"
print(f"\\ncompared {count - len(full)}, full:", *full)
"""
_SAID = re.compile(r"compared \d{1,4}, full:((?: \d{1,4})*)")


def check_torch(system: System, area: Path, python: Path, wanted: str) -> bytes | None:
    """
    Compare the torch of *python* with the row, and its results on GPUs with the CPU's.

    Return the content of the mark that the environment gets; None: all that it can be compared on
    agrees.

    Args:
        area: Directory of the build user that *python*, of the environment, is in.
        wanted: Version with its build, such as "2.13.0+cu130".

    Raises:
        HostError: Version, build or CUDA version is another, torch sees no GPU, or a result
            differs.
    """
    told = sandboxed(
        system, [str(python), "-I", "-c", _TELL], timeout_s=_VERSION_S, writable=[area]
    )
    if told.returncode != 0:
        raise _mismatch(one_line(told.stderr) or f"exit status {told.returncode}")
    check_version(wanted, told.stdout)
    if wanted.endswith("+cpu"):
        return None
    if not _can_compare(system):
        return b""
    result = sandboxed(
        system,
        [str(python), "-I", "-c", _COMPARE],
        timeout_s=_GPU_S,
        writable=[area],
        sees_gpus=True,
    )
    full = _full_gpus(result)
    return mark_text(system.boot_id(), full) if full else None


def before_slots(system: System) -> str:
    """
    Compare each marked environment once a boot, before the first slot starts and fills the GPUs.

    Where a result differs the mark says so: slots that fill the GPUs afterwards hide it from no
    run.  The slots start in any case.

    Raises:
        HostError: torch sees no GPU, or a result differs; all environments were tried.
    """
    boot_id, problem = system.boot_id(), None
    done = []
    with locked(system, system.layout.stage_lock, _LOCK_S):
        for venv in sorted(system.layout.venvs.glob("[0-9a-f]*")):
            mark = read_mark(venv, boot_id)
            if mark is None or not mark.is_due or mark.has_differed or not _can_compare(system):
                continue
            try:
                full = compare_later(system, venv, timeout_s=_START_S)
            except HostError as error:
                problem = problem or error
                if error.kind is ErrorKind.TORCH_MISMATCH:
                    _write_mark(system, venv, differed_text(boot_id))
                continue
            left = f", GPUs without free memory: {' '.join(map(str, full))}" if full else ""
            done.append(f"{venv.name[:12]} compared{left}")
    if problem is not None:
        raise problem
    return "; ".join(done) or "nothing to compare"


def compare_later(system: System, venv: Path, timeout_s: float = _GPU_S) -> tuple[int, ...]:
    """
    Compare the results of *venv*, a complete environment, on GPUs with the CPU's, if that is due
    and GPUs can be used now.

    Return the GPUs that had no free memory, such as where slots fill it: the mark stays, and is due
    again in the next boot.

    It runs as a user of its own: the build user cannot read an environment that is complete.

    Raises:
        HostError: torch sees no GPU, or a result differs; the next call compares again.
    """
    boot_id = system.boot_id()
    mark = read_mark(venv, boot_id)
    if mark is None or not mark.is_due or not _can_compare(system):
        return mark.full_gpus if mark else ()
    argv = command(
        [str(venv / "bin" / "python"), "-I", "-c", _COMPARE],
        timeout_s=timeout_s,
        readable=[venv],
        reads_as=paths.USER,
        sees_gpus=True,
    )
    full = _full_gpus(system.run(argv, timeout_s=timeout_s + _MARGIN_S), is_in_use=True)
    if full and mark.has_differed:
        raise _mismatch(
            "a result differed before the slots of this boot started, and fill GPUs now "
            f"{', '.join(map(str, full))}: journalctl -b -u {paths.TORCH_UNIT}",
            is_in_use=True,
        )
    if full:
        _write_mark(system, venv, mark_text(boot_id, full))
    else:
        remove(venv / tree.UNCOMPARED)
        sync_directory(venv)
    return full


def _write_mark(system: System, venv: Path, content: bytes) -> None:
    write_atomic(venv / tree.UNCOMPARED, content, FILE_MODE, system.account(paths.USER).gid)


def check_version(wanted: str, output: str) -> None:
    """
    Compare the version and the CUDA version in the last two lines of *output* with the row.

    Raises:
        HostError: The version, the build or the CUDA version is another.
    """
    version, cuda = [one_line(line) for line in ["", "", *output.splitlines()][-2:]]
    build = wanted.partition("+")[2]
    # cu130 is CUDA 13.0.
    wanted_cuda = f"{build[2:-1]}.{build[-1]}" if build.startswith("cu") else "None"
    if version != wanted:
        raise _mismatch(f"torch is {version or 'without a version'}, not {wanted}")
    if cuda != wanted_cuda:
        raise _mismatch(f"torch {version} has CUDA {cuda}, not {wanted_cuda}")


def _can_compare(system: System) -> bool:
    """
    Return True if programs can use CUDA: the host has GPUs, and their driver is not waiting to be
    loaded (libraries of another version than the loaded module's do not work with it).

    The first program of root that uses CUDA loads nvidia_uvm, and the sandbox loads no modules.
    """
    has_uvm = Path(system.layout.root, "sys/module/nvidia_uvm").is_dir()
    return has_uvm and _has_gpus(system) and not waits_for_driver(system)


def _full_gpus(result: ProgramResult, *, is_in_use: bool = False) -> tuple[int, ...]:
    """
    Return the GPUs that were not compared, because a slot uses their memory.

    Args:
        is_in_use: The environment is complete, and releases may use it.

    Raises:
        HostError: A result differs, or the comparison did not end as it should.
    """
    if result.returncode != 0:
        last = (result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1]
        raise _mismatch(one_line(last.removeprefix("AssertionError: ")), is_in_use=is_in_use)
    said = [match for match in map(_SAID.fullmatch, result.stdout.splitlines()) if match]
    if not said:
        raise _mismatch("the comparison does not say what it compared", is_in_use=is_in_use)
    return tuple(map(int, said[-1][1].split()))


def _has_gpus(system: System) -> bool:
    """
    Return True if the loaded NVIDIA driver has a GPU.
    """
    return any(Path(system.layout.root, "proc/driver/nvidia/gpus").glob("*"))


def _mismatch(why: str, *, is_in_use: bool = False) -> HostError:
    state = "it is in place, and releases use it" if is_in_use else "a new one is not used"
    return HostError(
        ErrorKind.TORCH_MISMATCH,
        f"the torch of the environment is not as the row says; {state}",
        why,
        "inv matrix, and on the host nvidia-smi; the lock of the row may have another build",
    )
