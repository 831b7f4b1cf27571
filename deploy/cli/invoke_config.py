"""
Reads invoke's configuration files, and checks invoke.yaml and a file given by `--config`: a
mistyped key is an error and not silence.

The keys of ~/.invoke.yaml and /etc/invoke.yaml are not checked: they may be of other projects.
"""

import difflib
import errno
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from invoke.config import Config

from deploy.errors import UsageError
from deploy.foreign_text import visible

FLEET = "fleet"
_SUFFIXES = (".yaml", ".yml", ".json", ".py")  # Source: invoke 2.2, configuration files


class CheckedConfig(Config):
    """
    invoke's configuration, which names the file that cannot be read, and why.
    """

    def _load_yaml(self, path: PathLike[Any]) -> Any:
        return _loaded(super()._load_yaml, path)

    _load_yml = _load_yaml

    def _load_json(self, path: PathLike[Any]) -> Any:
        return _loaded(super()._load_json, path)

    def _load_py(self, path: str) -> Any:
        return _loaded(super()._load_py, path)


def check_config_file(path: Path) -> None:
    """
    Check that *path*, which `--config` or INVOKE_RUNTIME_CONFIG names, can be a configuration.

    Raises:
        UsageError: invoke would skip it in silence, wait for it, or does not know its format.
    """
    fix = f"give a file that ends in {', '.join(_SUFFIXES)}"
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # too long; NUL
        raise UsageError(
            f"--config {visible(str(path), limit=200)}", why=str(error), fix=fix
        ) from None
    if not is_file or path.suffix not in _SUFFIXES:
        why = "has another format" if is_file else "does not exist, or is no regular file"
        raise UsageError(
            f"--config {visible(str(path), limit=200)}: no configuration file of invoke",
            why=f"it {why}",
            fix=fix,
        )


def _loaded(load: Callable[[Any], Any], path: PathLike[Any] | str) -> Any:
    """
    Return what *load* reads from *path*; invoke itself skips a file that does not exist.

    Raises:
        UsageError: It is no table of keys, or a key has a table in place of a value.
    """
    file = Path(path)
    if file.exists() and not file.is_file() and not file.is_dir():
        raise UsageError(
            f"{path}: no configuration file of invoke",
            why="it is no regular file",
            fix="remove it",
        )
    try:
        document = load(path)
    except OSError as error:
        if error.errno == errno.ENOENT and file.exists():  # of a program in it
            raise _unreadable(file, error) from error
        raise
    except (Exception, SystemExit) as error:  # any, of a program
        raise _unreadable(file, error) from error
    if document is not None:
        _check_shape(str(path), document, {**Config.global_defaults(), FLEET: ""}, ())
    return document


def _unreadable(path: Path, error: BaseException) -> UsageError:
    form = {".py": "it cannot be run", ".json": "not JSON"}.get(path.suffix, "not YAML")
    return UsageError(
        f"{visible(str(path))}: {form}",
        why=visible(f"{type(error).__name__}: {error}", limit=400),
        fix="correct this configuration file of invoke",
    )


def _check_shape(path: str, document: object, like: Mapping[str, Any], at: tuple[str, ...]) -> None:
    """
    Raises:
        UsageError: *document* has a table where *like* has a value, or the other way round.
    """
    if not isinstance(document, Mapping):
        raise UsageError(
            f"{path}: not a table of keys",
            why=f"{'.'.join(at) or 'it'} has {type(document).__name__} where keys belong",
            fix=f"write it as invoke.yaml of this repository: {FLEET}: NAME",
        )
    for key, value in document.items():
        if isinstance(like.get(key), Mapping):
            _check_shape(path, value, like[key], (*at, key))
        elif key in like and isinstance(value, Mapping):
            raise UsageError(
                f"{path}: {'.'.join((*at, key))} is not a value",
                why=f"got {visible(repr(value), limit=80)}",
                fix="write one value, and no keys below it",
            )


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
