"""
Each command, flag, key, file and module that a message names exists.

Messages are the strings of deploy/ and runtime/ that are no docstrings.  Parts that are only known
at run time are read as X.
"""

import argparse
import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from deploy.cli.program import SlipwayProgram
from deploy.inventory.schema import FleetFile
from runtime.server import check
from runtime.server.config import RuntimeConfig
from tests.unit.deploy.inventory.test_example import schema_keys
from tests.unit.test_docs import TASK, missing_paths
from tests.unit.test_flags import FLAG, flags_by_task, unknown_flags

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("deploy/**/*.py"), *ROOT.glob("runtime/**/*.py"), ROOT / "tasks.py"])
SECTIONS = "|".join(
    name
    for name, field in FleetFile.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
)
KEY = re.compile(rf"(?<![\w/.~@-])(?:{SECTIONS})(?:\.[a-z][a-z0-9_]*)+")
RUNTIME_KEY = re.compile(r"\bset ([a-z_]+):")
MODULE = re.compile(r"python -m ([\w.]+\w)")
# Sentences about slipway's own `./inv` and about invoke: no task follows.
NO_TASK = re.compile(r"\./inv makes\b|\binvoke (?:does|could|is|has)\b")
FIX = re.compile(r"(?<![a-z])fix(?:es)?(?![a-z])", re.IGNORECASE)
# Flags of other programs that a remedy names: certbot, mokutil, NVIDIA's installer, apt-get,
# unshare, mount.
FOREIGN = {"--eab-kid", "--import", "--uninstall", "--purge", "--fork", "--bind", "--query-gpu"}


def text_of(node):
    """
    Return the text of a string; X stands for each part of it that is computed.
    """
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "X"
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return "X"


def parsed(source):
    """
    Return all nodes of *source*; to walk the tree takes most of the time of these tests.
    """
    return list(ast.walk(ast.parse(source)))


def messages(nodes):
    """
    Yield the strings of *nodes* that are no docstrings, whole, also where lines divide them.
    """
    inner = set()
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values}
        if isinstance(node, ast.Expr):  # docstrings
            inner.add(id(node.value))
    for node in nodes:
        if id(node) in inner:
            continue
        if isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str)
        ):
            yield text_of(node)


def remedies(nodes):
    """
    Yield the texts that *nodes* pass as `fix`, or give to a variable of that name.
    """
    for node in nodes:
        value = None
        if isinstance(node, ast.keyword) and node.arg == "fix":
            value = node.value
        if isinstance(node, ast.Assign) and FIX.search(ast.unparse(node.targets[0])):
            value = node.value
        if value is not None:
            yield from messages(list(ast.walk(value)))


@cache
def fleet_keys():
    """
    Return the keys of the fleet file: service.port.
    """
    return {".".join(path) for path, _ in schema_keys()}


@cache
def tasks_of_inv():
    return flags_by_task()


@cache
def known_flags():
    """
    Return the flags of all tasks, of invoke, of `python -m runtime` and of other programs.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--port")
    check.add_arguments(parser)
    of_runtime = {flag for action in parser._actions for flag in action.option_strings}
    own = {f"--{name}" for argument in SlipwayProgram().core_args() for name in argument.names}
    return own.union(*tasks_of_inv().values(), of_runtime, FOREIGN)


def has_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def unknown_in(text, tasks):
    """
    Yield what *text* names that does not exist.
    """
    yield from (name for name in TASK.findall(NO_TASK.sub("", text)) if name not in tasks)
    yield from unknown_flags(text, tasks)
    if " " in text:  # a sentence; others are names of events and of places in a document
        yield from (key for key in KEY.findall(text) if key not in fleet_keys())
    yield from (module for module in MODULE.findall(text) if not has_module(module))
    yield from (path for path in missing_paths(text, ROOT) if "X" not in path)


def unknown_in_remedy(text, known):
    """
    Yield the flags and the keys of the runtime that the remedy *text* names and nothing has.
    """
    yield from (flag for flag in FLAG.findall(text) if flag not in known)
    keys = {*RuntimeConfig.model_fields, *(key.rpartition(".")[2] for key in fleet_keys())}
    yield from (key for key in RUNTIME_KEY.findall(text) if key not in keys)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_message_names_exists(path):
    """
    In a remedy also a flag without its task (`or --to the digest`), and a key of the runtime
    (`set kv: fp8`).
    """
    nodes, tasks = parsed(path.read_text()), tasks_of_inv()
    assert [name for text in messages(nodes) for name in unknown_in(text, tasks)] == []
    assert [x for text in remedies(nodes) for x in unknown_in_remedy(text, known_flags())] == []


def test_a_message_that_names_something_unknown_would_be_noticed():
    """
    Negative control: one slip of each kind is found, in a text of several lines too.
    """
    source = '''
def f(host):
    """
    inv docstring
    """
    raise E(f"{host}", fix=f"inv relase, or inv provision "
            f"--now on {host}; set service.prot or service.port; docs/gone.md or deploy/{host}; "
            "python -m runtime check, python -m deploy.gone; ./inv makes it")
'''
    tasks = {"provision": {"--limit"}}
    texts = list(messages(parsed(source)))
    assert [name for text in texts for name in unknown_in(text, tasks)] == [
        "relase",
        "provision --now",
        "service.prot",
        "deploy.gone",
        "docs/gone.md",
    ]


def test_a_remedy_that_names_something_unknown_would_be_noticed():
    """
    Negative control: a flag without a task, and a key of the runtime; other texts do not count.
    """
    source = 'E(why="--why", fix=f"leave --gone out {x}; set kvs: fp8" if x else "set kv: --to")'
    found = [
        name for text in remedies(parsed(source)) for name in unknown_in_remedy(text, {"--to"})
    ]
    assert found == ["--gone", "kvs"]
