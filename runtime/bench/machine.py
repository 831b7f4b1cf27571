"""
The machine and the versions that a benchmark ran on.
"""

import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True, slots=True)
class BenchMachine:
    """
    The machine and the versions that a benchmark ran on.

    Attributes:
        device: Name of the GPU, or the CPU's architecture.
        driver: Version of the GPU's driver; None without a GPU, or if nvidia-smi fails.
        at: Time of the run: UTC, ISO 8601.
    """

    device: str
    driver: str | None
    python: str
    torch: str
    cuda: str | None
    triton: str | None
    at: str


def read_machine(device: str) -> BenchMachine:
    import torch

    is_cuda = device == "cuda"
    return BenchMachine(
        device=torch.cuda.get_device_name() if is_cuda else f"CPU {platform.machine()}",
        driver=_driver() if is_cuda else None,
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=_version("triton"),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    argv = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        process = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(process.stdout.split()), None)
