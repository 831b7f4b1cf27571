"""
Asks the runtime whether the chat templates of a model compile.

A process of the runtime does it: a template comes from outside, and only the runtime knows the tags
and filters that it may use.  Templates are compiled there with bounds on time and memory.
"""

import json
import subprocess
import sys
from pathlib import Path

from deploy.errors import ModelPathError

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0


def template_complaint(model: Path) -> str:
    """
    Return why the runtime would refuse the templates of *model*; empty if it takes them.

    Raises:
        ModelPathError: They could not be checked.
    """
    argv = [sys.executable, "-m", "runtime.chat", str(model.absolute())]
    try:
        done = subprocess.run(
            argv,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        answer = json.loads(done.stdout)
        return "" if answer is None else str(answer["complaint"])
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelPathError(
            f"model {model}: its chat templates can't be checked",
            why=f"{type(error).__name__}: {error}",
            fix=f"see what this says: cd {ROOT} && {sys.executable} -m runtime.chat {model}",
        ) from error
