"""
Asks nvidia-smi, which may never return: in a broken driver no signal ends a process.

So it is started, given a time, and left alone when that has passed.
"""

from __future__ import annotations

from deploy.host.protocol import GpuState
from deploy.host.system import System
from deploy.host.text import one_line

_TIMEOUT_S = 15.0
_GPUS_MAX = 64
_FIELDS = (
    "pci.bus_id",
    "persistence_mode",
    "power.limit",
    "power.min_limit",
    "power.max_limit",
    "ecc.mode.current",
    "ecc.mode.pending",
    "mig.mode.current",
    "mig.mode.pending",
)
_SWITCH = {"Enabled": True, "Disabled": False}


def read_gpus(
    system: System, timeout_s: float = _TIMEOUT_S
) -> tuple[tuple[GpuState, ...], str | None]:
    """
    Return the GPUs that nvidia-smi lists, and why it lists none.
    """
    result = system.ask_driver(_query(",".join(_FIELDS)), timeout_s=timeout_s)
    if result is None:
        return (), f"nvidia-smi cannot be run, or did not end within {timeout_s:.0f} s"
    if result.returncode != 0:
        said = one_line(result.stdout or result.stderr)
        return (), f"nvidia-smi: exit status {result.returncode}: {said[:300]}"
    rows = [line.split(", ") for line in result.stdout.splitlines()[:_GPUS_MAX]]
    wrong = [row for row in rows if len(row) != len(_FIELDS)]
    if wrong or not rows:
        return (), f"nvidia-smi prints another table: {one_line(result.stdout)[:300]}"
    return tuple(_gpu(row) for row in rows), None


def fabric_states(system: System) -> tuple[str, ...]:
    """
    Return the state of each GPU in the NVLink fabric; empty where nvidia-smi has no such field.
    """
    result = system.ask_driver(_query("fabric.state"), timeout_s=_TIMEOUT_S)
    if result is None or result.returncode != 0:
        return ()
    return tuple(line.strip() for line in result.stdout.splitlines()[:_GPUS_MAX])


def _query(fields: str) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]


def _gpu(row: list[str]) -> GpuState:
    bus, persistence, *watts, ecc, next_ecc, mig, next_mig = (cell.strip() for cell in row)
    power_w, power_min_w, power_max_w = map(_number, watts)
    return GpuState(
        bus=bus,
        persistence=_SWITCH.get(persistence),
        power_w=power_w,
        power_min_w=power_min_w,
        power_max_w=power_max_w,
        ecc=_SWITCH.get(ecc),
        next_ecc=_SWITCH.get(next_ecc),
        mig=_SWITCH.get(mig),
        next_mig=_SWITCH.get(next_mig),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # [N/A], [Not Supported], [Unknown Error]
