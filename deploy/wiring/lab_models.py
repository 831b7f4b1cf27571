"""
The lab's models, made in a process of its own: it needs torch.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.errors import CommandFailed
from deploy.private_files import private_directory
from deploy.wiring.checkout import ROOT


def make_lab_model(kind: str, out: Path | None, progress: Callable[[str], None]) -> Path:
    """
    Make a lab model of *kind* in a process of its own (it needs torch) and return its directory.

    Raises:
        CommandFailed: It could not be made.
    """
    target = out or private_directory(ROOT / ".slipway" / "models" / kind)
    progress(f"lab model {kind}: {target}")
    argv = [sys.executable, "-m", "deploy.lab.models", "--kind", kind, "--out", str(target)]
    argv += ["--cache", str(private_directory(ROOT / ".slipway" / "lab-weights"))]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(
            f"lab model {kind}: could not be made",
            why=" / ".join(done.stderr.strip().splitlines()[-3:]),
            fix="inv lab.model --kind good-v1, good-v2, nan or garbled",
        )
    return target
