"""
YAML text as plain data, with the line of every key and all problems of the text.  Pure.

Stricter than YAML's safe loader: duplicate keys, keys that are not text, and tags are problems.
(The safe loader silently takes the last of two duplicate keys.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import yaml

KeyPath = tuple[str | int, ...]
Data: TypeAlias = "str | int | float | bool | list[Data] | dict[str, Data] | None"

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset({"str", "timestamp", "value"})  # a date is text: no key holds dates
_MAX_NODES = 100_000  # nested aliases can expand to billions of entries


@dataclass(frozen=True, slots=True)
class Problem:
    """
    One problem of a fleet file.

    Attributes:
        path: Path of the key from the top of the file; empty for the whole file.
        text: The value and what is allowed, without the path.
        line: Line in the file, from 1; None if no single line is at fault.
    """

    path: KeyPath
    text: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{format_path(self.path)}: {self.text}" if self.path else self.text


@dataclass(frozen=True, slots=True)
class Document:
    """
    A parsed YAML text.

    Attributes:
        data: Content; None if the text could not be parsed.
        lines: Line of every key and list entry, from 1.
        problems: Violations of the rules above; empty for a valid text.
        source: Lines of the text.
    """

    data: Data
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...]
    source: tuple[str, ...]

    def line_of(self, path: KeyPath) -> int | None:
        """
        Return the line of *path*, or of its nearest parent in the text; None without one.
        """
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None

    def holds(self, path: KeyPath) -> bool:
        """
        Return True if the text has the key or list entry *path*.
        """
        return path in self.lines

    def at(self, path: KeyPath) -> Data:
        """
        Return the value at *path*; None if there is none.
        """
        value = self.data
        for part in path:
            if isinstance(value, dict) and isinstance(part, str):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return None
        return value


def format_path(path: KeyPath) -> str:
    """
    Return *path* as text: `release.waves[1]`, `hosts.gpu-01.ssh.port`.
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def parse_document(text: str) -> Document:
    """
    Parse *text*.  Errors are returned in `problems` and never raised.
    """
    loader = yaml.SafeLoader(text) if _has_only_yaml_characters(text) else None
    if loader is None:
        return _invalid("the file contains characters that YAML does not allow", None)
    try:
        node = loader.get_single_node()
        if node is None:
            return _invalid("the file is empty", None)
        reader = _Reader(loader)
        data = reader.read(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        column = f", column {mark.column + 1}" if mark else ""
        line = mark.line + 1 if mark else None
        return _invalid(f"not YAML: {error.problem or error.context}{column}", line)
    except _TooManyNodes:
        return _invalid(f"the file expands to more than {_MAX_NODES} entries", None)
    except RecursionError:
        return _invalid("the file is nested too deeply", None)
    finally:
        loader.dispose()
    return Document(data, reader.lines, tuple(reader.problems), tuple(text.splitlines()))


class _TooManyNodes(Exception):
    pass


def _has_only_yaml_characters(text: str) -> bool:
    return yaml.SafeLoader.NON_PRINTABLE.search(text) is None


def _invalid(text: str, line: int | None) -> Document:
    return Document(None, {}, (Problem((), text, line),), ())


class _Reader:
    """
    Converts YAML nodes to plain data; collects the line of each key, and problems.
    """

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._parents: list[yaml.Node] = []
        self._count = 0
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def read(self, node: yaml.Node, path: KeyPath) -> Data:
        self._count += 1
        if self._count > _MAX_NODES:
            raise _TooManyNodes
        if any(node is parent for parent in self._parents):
            self._add_problem(node, path, "contains itself")
            return None
        self._parents.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._read_mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return self._read_list(node, path)
            assert isinstance(node, yaml.ScalarNode)
            return self._read_scalar(node, path)
        finally:
            self._parents.pop()

    def _read_mapping(self, node: yaml.MappingNode, path: KeyPath) -> Data:
        self._find_duplicates(node, path)
        self._loader.flatten_mapping(node)
        mapping: dict[str, Data] = {}
        for key, value in node.value:
            name = self._key_name(key)
            self.lines[(*path, name)] = key.start_mark.line + 1
            if key.tag != _TAG + "str":
                self._add_problem(key, (*path, name), "the key should be text; put it in quotes")
            mapping[name] = self.read(value, (*path, name))
        return mapping

    def _find_duplicates(self, node: yaml.MappingNode, path: KeyPath) -> None:
        # Before `<<` is resolved: a key may override a merged key.
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = self._key_name(key), key.start_mark.line + 1
            if name in first_lines:
                text = f"duplicate key, on line {first_lines[name]} and on line {line}"
                self._add_problem(key, (*path, name), text)
            first_lines.setdefault(name, line)

    def _key_name(self, key: yaml.Node) -> str:
        return key.value if isinstance(key, yaml.ScalarNode) else "?"

    def _read_list(self, node: yaml.SequenceNode, path: KeyPath) -> Data:
        entries = []
        for index, value in enumerate(node.value):
            self.lines[(*path, index)] = value.start_mark.line + 1
            entries.append(self.read(value, (*path, index)))
        return entries

    def _read_scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Data:
        kind = node.tag.removeprefix(_TAG)
        text = str(node.value)
        if kind in _TEXT_TAGS:
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return bool(self._loader.construct_yaml_bool(node))
        try:
            if kind == "int":
                return int(self._loader.construct_yaml_int(node))
            if kind == "float":
                number = float(self._loader.construct_yaml_float(node))
                return number if math.isfinite(number) else text
        except ValueError:
            return text
        text_of_problem = f"the tag {node.tag!r} is not allowed; remove the tag"
        self._add_problem(node, path, text_of_problem)
        return text

    def _add_problem(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(path, text, node.start_mark.line + 1))
