"""
Checks invoke.yaml, and a file given by `--config`: a mistyped key is an error and not silence.

~/.invoke.yaml and /etc/invoke.yaml are not checked: they may have keys of other projects.
"""

import difflib
from collections.abc import Mapping

from invoke.config import Config

from deploy.errors import UsageError
from deploy.foreign_text import visible

FLEET = "fleet"


def check_config(config: Config) -> None:
    """
    Check what *config* has loaded for this project.

    Raises:
        UsageError: A key is unknown, or `fleet` is not the name of a fleet.
    """
    # invoke has no public way to ask which file a key came from.
    for path, document in (
        (config._project_path, config._project),
        (config._runtime_path, config._runtime),
    ):
        if document:
            _check(str(path), document)


def _check(path: str, document: object) -> None:
    if not isinstance(document, Mapping):
        raise UsageError(
            f"{path}: not a table of keys",
            why=f"it has {type(document).__name__} where keys belong",
            fix=f"write it as invoke.yaml of this repository: {FLEET}: NAME",
        )
    known = {*Config.global_defaults(), FLEET}
    for key in document:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"{path}: unknown key {visible(str(key))}",
                why=f"the keys are {', '.join(sorted(known))}",
                fix=f"did you mean {near[0]}?" if near else "delete that key",
            )
    fleet = document.get(FLEET, "")
    if not isinstance(fleet, str):
        raise UsageError(
            f"{path}: {FLEET} is not the name of a fleet",
            why=f"got {visible(repr(fleet))}",
            fix=f"name one file of inventories/, such as {FLEET}: lab",
        )
