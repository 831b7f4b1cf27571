"""
Verbs and fields of the host program are spelled in deploy/host/protocol.py alone, and those of
its documents in deploy/host/rpc.py.
"""

import ast
import dataclasses
import typing
from pathlib import Path

import pytest

from deploy.host.protocol import REQUESTS, result_type

ROOT = Path(__file__).parents[2]
PROTOCOL = ("deploy/host/protocol.py", "deploy/host/rpc.py")

# Other documents that have keys of the same names, and who reads them.
OTHER_DOCUMENTS = {
    "deploy/cli/events.py": "events of a release",
    "deploy/demo/report.py": "samples of the load generator",
    "deploy/host/bundle/golden_form.py": "golden.jsonl, and answers of the runtime",
    "deploy/host/gpu_facts.py": "output of modinfo",
    "deploy/host/api_keys.py": "the stored list of API keys",
    "deploy/host/desired.py": "the stored desired state",
    "deploy/host/good.py": "lines of the journal",
    "deploy/host/records.py": "lines of the journal of the former format",
    "deploy/host/replay.py": "arguments of lines of the journal",
    "deploy/host/slots/slot.py": "manifest.json",
    "deploy/host/session.py": "heads of calls in a session",
    "deploy/host/system.py": "host.json",
    "deploy/versions/generate.py": "files of a package index",
    "deploy/versions/matrix.py": "matrix.yml",
    "deploy/versions/package_index.py": "files of a package index",
    "deploy/drill/cell_run.py": "documents of the command line",
    "deploy/drill/checkout.py": "documents of the command line",
    "deploy/drill/host_state.py": "what a host shows inside",
    "deploy/drill/journals.py": "lines of the journal",
    "deploy/inventory/schema/references.py": "keys of the fleet file",
    "deploy/release/desired_text.py": "the desired state, opaque to hosts",
    "deploy/release/store_etcd.py": "documents of etcd",
    "deploy/release/endings.py": "data of journal events, evidence",
    "deploy/inventory/names.py": "groups of regular expressions",
    "deploy/inventory/validation_messages.py": "errors of pydantic",
}


def fields_of_the_protocol():
    """
    Return the name of every field of every request and result, nested ones included.
    """
    names, done = set(), set()
    todo = [*REQUESTS.values(), *map(result_type, REQUESTS.values())]
    while todo:
        kind = todo.pop()
        if kind not in done:
            done.add(kind)
            hints = typing.get_type_hints(kind, include_extras=True)
            for field in dataclasses.fields(kind):
                names.add(field.name)
                todo += dataclasses_in(hints[field.name])
    return names


def dataclasses_in(kind):
    if dataclasses.is_dataclass(kind):
        yield kind
    for argument in typing.get_args(kind):
        yield from dataclasses_in(argument)


FIELDS = fields_of_the_protocol()
DOTTED_VERBS = {verb for verb in REQUESTS if "." in verb}


def is_field(node):
    return isinstance(node, ast.Constant) and node.value in FIELDS


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def spelled(source):
    """
    Yield (line, what) for each verb, and each field as the key of a dictionary, in *source*.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in DOTTED_VERBS:
            yield node.lineno, f"verb {node.value}"
        elif isinstance(node, ast.Subscript) and is_field(node.slice):
            if ast.unparse(node.value) != "Literal":
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            if node.func.attr in ("get", "pop") and node.args and is_field(node.args[0]):
                yield node.lineno, ast.unparse(node)
            if node.func.attr == "call" and node.args and is_text(node.args[0]):
                yield node.lineno, f"verb {node.args[0].value}"
            if node.func.attr == "call" and any(isinstance(a, ast.Dict) for a in arguments):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if {"fence", "args"} <= keys:
                yield node.lineno, "a request by hand"


def sources():
    for path in sorted(ROOT.glob("deploy/**/*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in PROTOCOL and name not in OTHER_DOCUMENTS:
            yield name, path.read_text()


@pytest.mark.parametrize(("name", "source"), [pytest.param(*s, id=s[0]) for s in sources()])
def test_no_module_spells_the_protocol(name, source):
    """
    The controller and the verbs hold typed messages.
    """
    assert list(spelled(source)) == []


@pytest.mark.parametrize("name", OTHER_DOCUMENTS)
def test_an_exception_is_one(name):
    """
    A module that has no such key any more leaves the list.
    """
    assert list(spelled((ROOT / name).read_text()))


@pytest.mark.parametrize(
    "source",
    [
        'tool.call("slot.start", args)',
        'tool.call("status")',
        'x = "traffic.set"',
        'client.call(x, {"slot": "blue"})',
        'status["slots"]',
        'seen.get("weight")',
        'tool.call(verb)["fence"]',
        '{"fence": 1, "release": "r", "args": {}}',
    ],
)
def test_each_way_to_spell_it_would_be_noticed(source):
    """
    Negative control.
    """
    assert list(spelled(source))


@pytest.mark.parametrize(
    "source",
    [
        'client.call(SlotStart(slot="blue", bundle=digest))',
        "status.slots[name].weight",
        'report = {"slots": 1}',
        'row["nothing_of_ours"]',
        'x: Literal["slot"]',
        'os.environ.get("HOME")',
    ],
)
def test_typed_messages_and_other_documents_are_left_alone(source):
    """
    Negative control of the negative control.
    """
    assert list(spelled(source)) == []
