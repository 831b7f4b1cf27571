"""
YAML text as plain data, with the line of every key and each thing wrong with the text.  Pure.

Stricter than a plain safe load: a key given twice is a problem, where YAML libraries let the
last one win in silence; so are keys that are not text, and tags.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import yaml

KeyPath = tuple[str | int, ...]
Data: TypeAlias = "str | int | float | bool | list[Data] | dict[str, Data] | None"

_TAG = "tag:yaml.org,2002:"
_PLAIN = frozenset({"str", "timestamp", "value"})  # a date is text here: no key holds dates
_MOST_NODES = 100_000  # aliases of aliases can stand for billions of entries


@dataclass(frozen=True, slots=True)
class Problem:
    """
    One thing that is wrong with a file.

    Attributes:
        path: The key, from the top of the file; empty for the file as a whole.
        text: What was found and what is allowed.
        line: Counted from 1; None when no line can be blamed.
    """

    path: KeyPath
    text: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{format_path(self.path)}: {self.text}" if self.path else self.text


@dataclass(frozen=True, slots=True)
class Document:
    """
    Attributes:
        data: What the text holds; None where it could not be read at all.
        lines: The line of every key and list entry.
        problems: Empty when the text is sound YAML by the rules above.
        source: The lines of the text.
    """

    data: Data
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...]
    source: tuple[str, ...]

    def line_of(self, path: KeyPath) -> int | None:
        """
        Return the line of *path*, or of the nearest key above it that the text has.
        """
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None

    def holds(self, path: KeyPath) -> bool:
        return path in self.lines

    def at(self, path: KeyPath) -> Data:
        """
        Return what stands at *path*; None if nothing does.
        """
        found = self.data
        for part in path:
            if isinstance(found, dict) and isinstance(part, str):
                found = found.get(part)
            elif isinstance(found, list) and isinstance(part, int) and part < len(found):
                found = found[part]
            else:
                return None
        return found


def format_path(path: KeyPath) -> str:
    """
    Return *path* as an operator writes it: `release.waves[1]`, `hosts.gpu-01.ssh.port`.
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
    Read *text*; whatever is wrong with it is in `problems`, never raised.
    """
    loader = yaml.SafeLoader(text) if _is_readable(text) else None
    if loader is None:
        return _broken("holds characters that YAML does not allow", None)
    try:
        node = loader.get_single_node()
        if node is None:
            return _broken("the file is empty", None)
        reader = _Reader(loader)
        data = reader.read(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", column {mark.column + 1}" if mark else ""
        line = mark.line + 1 if mark else None
        return _broken(f"not YAML: {error.problem or error.context}{where}", line)
    except _TooMuch:
        return _broken(f"stands for more than {_MOST_NODES} entries", None)
    except RecursionError:
        return _broken("is nested too deeply", None)
    finally:
        loader.dispose()
    return Document(data, reader.lines, tuple(reader.problems), tuple(text.splitlines()))


class _TooMuch(Exception):
    pass


def _is_readable(text: str) -> bool:
    return yaml.SafeLoader.NON_PRINTABLE.search(text) is None


def _broken(text: str, line: int | None) -> Document:
    return Document(None, {}, (Problem((), text, line),), ())


class _Reader:
    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._inside: list[yaml.Node] = []
        self._count = 0
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def read(self, node: yaml.Node, path: KeyPath) -> Data:
        self._count += 1
        if self._count > _MOST_NODES:
            raise _TooMuch
        if any(node is outer for outer in self._inside):
            self._complain(node, path, "contains itself")
            return None
        self._inside.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._read_mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return self._read_list(node, path)
            assert isinstance(node, yaml.ScalarNode)
            return self._read_scalar(node, path)
        finally:
            self._inside.pop()

    def _read_mapping(self, node: yaml.MappingNode, path: KeyPath) -> Data:
        self._find_duplicates(node, path)
        self._loader.flatten_mapping(node)
        found: dict[str, Data] = {}
        for key, value in node.value:
            name = self._key_name(key)
            self.lines[(*path, name)] = key.start_mark.line + 1
            if key.tag != _TAG + "str":
                self._complain(key, (*path, name), "the name should be text; write it in quotes")
            found[name] = self.read(value, (*path, name))
        return found

    def _find_duplicates(self, node: yaml.MappingNode, path: KeyPath) -> None:
        # Before `<<` is resolved: a key may override one that is merged in.
        first: dict[str, int] = {}
        for key, _ in node.value:
            name, line = self._key_name(key), key.start_mark.line + 1
            if name in first:
                text = f"given twice, on line {first[name]} and on line {line}"
                self._complain(key, (*path, name), text)
            first.setdefault(name, line)

    def _key_name(self, key: yaml.Node) -> str:
        return key.value if isinstance(key, yaml.ScalarNode) else "?"

    def _read_list(self, node: yaml.SequenceNode, path: KeyPath) -> Data:
        found = []
        for index, value in enumerate(node.value):
            self.lines[(*path, index)] = value.start_mark.line + 1
            found.append(self.read(value, (*path, index)))
        return found

    def _read_scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Data:
        kind = node.tag.removeprefix(_TAG)
        text = str(node.value)
        if kind in _PLAIN:
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
        self._complain(node, path, f"the tag {node.tag!r} is not allowed; write the value alone")
        return text

    def _complain(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(path, text, node.start_mark.line + 1))
