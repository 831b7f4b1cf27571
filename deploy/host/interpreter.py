"""
Whether the Python that an environment leads to still runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deploy.host.protocol import HostError
from deploy.host.system import System
from deploy.host.text import one_line

_TIMEOUT_S = 20.0


def python_problem(system: System, python: Path) -> str | None:
    """
    Return why *python*, a link that root made, does not lead to a Python that runs; None: it does.
    """
    target = os.path.realpath(python)
    if not os.path.isfile(target):  # noqa: PTH113 - text, as realpath gives it
        return f"{target} is gone"
    if not os.access(target, os.X_OK):
        return f"{target} cannot be executed"
    if target == os.path.realpath(sys.executable):
        return None  # it runs this program
    try:
        # Not by its link: what the environment configures is not loaded.
        # -B: root would write bytecode into a tree that is compared with its archive.
        result = system.run([target, "-I", "-S", "-B", "-c", "pass"], timeout_s=_TIMEOUT_S)
    except (HostError, OSError) as error:
        return f"{target} does not run: {one_line(str(error))}"
    if result.returncode == 0:
        return None
    return f"{target} does not run: {one_line(result.stderr) or f'status {result.returncode}'}"
