"""
Reads a configuration file: plain YAML, in which every number and boolean means one thing.

Stricter than YAML's safe loader, as the fleet file is: duplicate keys and tags are errors.  Numbers
are decimal, and only `true` and `false` are booleans: YAML 1.1 reads 0022 as 18, 1:30 as 90 and
`no` as false.  Such a value is text here, which the schema then refuses by its key.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from runtime.contract.errors import ConfigError
from runtime.plain_files import read_plain_file

MAX_BYTES = 1 << 20
MAX_NODES = 10_000  # aliases of aliases expand to billions of entries
_BOOLEANS = {"true": True, "True": True, "TRUE": True,
             "false": False, "False": False, "FALSE": False}  # fmt: skip
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_DECIMAL = re.compile(r"-?[0-9]{1,20}\.[0-9]{1,20}(?:e[+-][0-9]{1,3})?")
_TAG = "tag:yaml.org,2002:"


def read_config_file(path: Path) -> dict[str, Any]:
    """
    Return the keys and values of *path*; none for an empty file.

    Raises:
        ConfigError: It can't be read, is not YAML, or is no mapping.
    """
    try:
        text = read_plain_file(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: can't be read", why=str(error), fix="inv provision, then inv release"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not YAML", why=str(error), fix="save the file as UTF-8"
        ) from error
    try:
        found = _parse(text)
    except RecursionError as error:
        why, fix = "it is nested too deeply, or contains itself", "correct the file"
        raise ConfigError(f"{path}: is not YAML", why=why, fix=fix) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets the errors of int() and chr() out: "\UFFFFFFFF" in quotes.
        raise ConfigError(f"{path}: is not YAML", why=str(error), fix="correct the file") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: should be a mapping of keys to values",
            why=f"it holds a {type(found).__name__}",
            fix="correct the file",
        )
    return found


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in (_TAG + "str", _TAG + "merge"):
                _refuse(key, "a key should be text; put it in quotes")
            if key.value in first_lines:
                _refuse(key, f"duplicate key {key.value}, first on line {first_lines[key.value]}")
            first_lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _parse(text: str) -> object:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, 0)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, count: int) -> int:
    """
    Return *count* and the number of nodes in *node*, those that aliases repeat included.
    """
    if count > MAX_NODES:
        raise ValueError(f"it expands to more than {MAX_NODES} entries")
    count += 1
    if isinstance(node, yaml.CollectionNode):
        for entry in node.value:
            for each in entry if isinstance(entry, tuple) else (entry,):
                count = _count(each, count)
    return count


def _refuse(node: yaml.Node, why: str) -> None:
    raise yaml.MarkedYAMLError(None, None, why, node.start_mark)


def _construct_plain(loader: _Loader, node: yaml.ScalarNode) -> object:
    text = str(node.value)
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    number = float(text) if _DECIMAL.fullmatch(text) else math.inf
    return number if math.isfinite(number) else text


def _refuse_tag(loader: _Loader, node: yaml.Node) -> None:
    _refuse(node, f"the tag {node.tag} is not allowed; remove it")


# A date is text: no key holds dates.
for _kind in ("bool", "int", "float", "timestamp", "value"):
    _Loader.add_constructor(_TAG + _kind, _construct_plain)
for _kind in ("binary", "omap", "pairs", "set"):
    _Loader.add_constructor(_TAG + _kind, _refuse_tag)
