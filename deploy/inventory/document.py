"""
YAML text as plain data, with the line of every key and all problems of the text.  Pure.

Stricter than YAML's safe loader: duplicate keys, keys that are not text, and tags are problems.
(The safe loader silently takes the last of two duplicate keys.)  Numbers are decimal, and only
`true` and `false` are booleans: YAML 1.1 reads 0022 as 18, 22:10 as 1330 and `no` as false.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import yaml

KeyPath = tuple[str | int, ...]
Entries: TypeAlias = dict[str, tuple[yaml.Node, yaml.Node]]
Data: TypeAlias = "str | int | float | bool | list[Data] | dict[str, Data] | None"

_TAG = "tag:yaml.org,2002:"
_COLLECTIONS = frozenset({_TAG + "map", _TAG + "seq"})
_TEXT_TAGS = frozenset({"str", "timestamp", "value"})  # a date is text: no key holds dates
_MAX_NODES = 100_000  # nested aliases can expand to billions of entries
_MAX_CHARACTERS = 2**20
_KEY_MAX = 128
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_DECIMAL = re.compile(r"-?[0-9]{1,15}\.[0-9]{1,15}")
_BOOLEANS = {"true": True, "True": True, "TRUE": True,
             "false": False, "False": False, "FALSE": False}  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")  # "\\udcff" in quotes; it cannot be encoded
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


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
            shown = part if _PLAIN_KEY.fullmatch(part) else json.dumps(part)[:_KEY_MAX]
            text += f".{shown}" if text else shown
    return text


def parse_document(text: str) -> Document:
    """
    Parse *text*.  Errors are returned in `problems` and never raised.
    """
    if len(text) > _MAX_CHARACTERS:
        return _invalid(f"the file has more than {_MAX_CHARACTERS} characters", None)
    if wrong := yaml.SafeLoader.NON_PRINTABLE.search(text):
        at = text.count("\n", 0, wrong.start()) + 1
        words = f"the character U+{ord(wrong[0]):04X}, which YAML does not allow"
        return _invalid(f"the file contains {words}; remove it", at)
    loader = yaml.SafeLoader(text)
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
    except (ValueError, OverflowError):
        # "\UFFFFFFFF" in quotes, and a version of 5,000 digits in a %YAML line: PyYAML lets the
        # errors of chr() and int() out.
        return _invalid("not YAML: a number or an escape is out of range", loader.line + 1)
    except _TooManyNodes:
        return _invalid(f"the file expands to more than {_MAX_NODES} entries", None)
    except RecursionError:
        return _invalid("the file is nested too deeply", None)
    finally:
        loader.dispose()
    return Document(data, reader.lines, tuple(reader.problems), tuple(text.splitlines()))


class _TooManyNodes(Exception):
    pass


def _plain_value(text: str) -> Data:
    """
    Return the number or boolean that *text* is in every version of YAML; otherwise *text*.
    """
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


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
        self._count_one()
        if any(node is parent for parent in self._parents):
            self._add_problem(node, path, "contains itself")
            return None
        self._parents.append(node)
        try:
            if node.tag not in _COLLECTIONS and not isinstance(node, yaml.ScalarNode):
                self._add_tag_problem(node, path)
            if isinstance(node, yaml.MappingNode):
                return self._read_mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return self._read_list(node, path)
            assert isinstance(node, yaml.ScalarNode)
            return self._read_scalar(node, path)
        finally:
            self._parents.pop()

    def _count_one(self) -> None:
        self._count += 1
        if self._count > _MAX_NODES:
            raise _TooManyNodes

    def _read_mapping(self, node: yaml.MappingNode, path: KeyPath) -> Data:
        self._find_duplicates(node, path)
        mapping: dict[str, Data] = {}
        for name, (key, value) in self._entries(node, path).items():
            self.lines[(*path, name)] = key.start_mark.line + 1
            if key.tag != _TAG + "str":
                self._add_problem(key, (*path, name), "the key should be text; put it in quotes")
            elif name != key.value:
                self._add_problem(key, (*path, name), "has half of a surrogate pair")
            elif len(name) > _KEY_MAX:
                self._add_problem(key, (*path, name), f"has more than {_KEY_MAX} characters")
            mapping[name] = self.read(value, (*path, name))
        return mapping

    def _entries(self, node: yaml.MappingNode, path: KeyPath) -> Entries:
        """
        Return the keys of *node* by name, those that `<<` merges included.

        A key of the mapping itself goes before a merged one, and an earlier merged mapping before a
        later one.
        """
        own: Entries = {}
        merged: Entries = {}
        for key, value in node.value:
            self._count_one()
            if key.tag != _TAG + "merge":
                own[self._key_name(key)] = (key, value)
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    self._add_problem(key, (*path, "<<"), "should name a mapping to merge")
                elif any(source is parent for parent in self._parents):
                    self._add_problem(key, (*path, "<<"), "contains itself")
                else:
                    self._parents.append(source)
                    merged = self._entries(source, path) | merged
                    self._parents.pop()
        return merged | own

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
        return _SURROGATE.sub("?", key.value) if isinstance(key, yaml.ScalarNode) else "?"

    def _read_list(self, node: yaml.SequenceNode, path: KeyPath) -> Data:
        entries = []
        for index, value in enumerate(node.value):
            self.lines[(*path, index)] = value.start_mark.line + 1
            entries.append(self.read(value, (*path, index)))
        return entries

    def _read_scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Data:
        kind = node.tag.removeprefix(_TAG)
        text = str(node.value)
        if _SURROGATE.search(text):
            self._add_problem(node, path, "has half of a surrogate pair, which is no character")
            return _SURROGATE.sub("?", text)
        resolved = self._loader.resolve(  # type: ignore[no-untyped-call]
            yaml.ScalarNode, text, (True, False)
        )
        # A tag that is written out and changes the value: `!!null 2222` would be no port at all.
        if kind != "str" and node.tag != resolved:
            self._add_tag_problem(node, path)
            return text
        if kind in _TEXT_TAGS:
            return text
        if kind == "null":
            return None
        if kind in ("bool", "int", "float"):
            return _plain_value(text)
        self._add_tag_problem(node, path)
        return text

    def _add_tag_problem(self, node: yaml.Node, path: KeyPath) -> None:
        self._add_problem(node, path, f"the tag {node.tag!r} is not allowed; remove the tag")

    def _add_problem(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(path, text, node.start_mark.line + 1))
