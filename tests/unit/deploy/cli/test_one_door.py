"""
Nothing in deploy/ prints except through the door, deploy/cli/terminal.py.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
# Modules that write to the standard streams, each for a reason of its own.
DOORS = {
    "deploy.cli.terminal": "the door",
    "deploy.cli.sudo_password": "asks whether standard error is a terminal",
    "deploy.cli.streams": "guards the streams",
    "deploy.cli.watch": "asks whether standard output is a terminal",
    "deploy.cli.confirm": "asks whether standard input and error are a terminal",
    "deploy.cli.boundary": "asks whether standard output is gone",
    "deploy.host.__main__": "a program on hosts: its answer, one line of JSON",
    "deploy.host.session": "calls in processes of their own, whose output is the answer",
    "deploy.provision.engine": "in the worker, whose standard error its parent reads",
    "deploy.provision.worker": "the protocol with its parent, in lines of JSON",
    "deploy.bench.one_fleet": "one measurement in a process of its own: its figures, as JSON",
    "deploy.bench.provision.slow_link": "slow links in a process of their own: their ports",
    "deploy.bench.simulated_hosts": "hosts of a benchmark in a process of their own: their counts",
    "deploy.lab.__main__": "the lab's program for tests; its texts are made visible",
    "deploy.versions.generate": "generates the version matrix, as a program of its own",
    "deploy.wheelhouse.renew": "makes the locks of the rows, as a program of its own",
    "deploy.lab.models.__main__": "trains the lab's models, in a process of its own",
}
# Modules whose child processes print to our streams themselves.
CHILDREN = {
    "deploy.cli.programs": "the linter, the tests and the bench of this checkout",
    "deploy.bench.one_fleet": "its simulated hosts, which print their own defects alone",
    "deploy.bench.provision.times": "its slow links, which print their ports alone",
    "deploy.release.hook_guard": "a hook, whose output goes to the pipes of its starter",
    "deploy.lab.__main__": "becomes the ssh client",
    "tasks": "lab.ssh becomes the ssh client: its terminal is the host's",
}
STREAMS = {"stdout", "stderr", "__stdout__", "__stderr__"}
PRINTERS = {"print", "pprint", "input", "breakpoint", "help"}
METHODS = {"print_exc", "print_exception", "print_stack", "print_tb", "basicConfig",
           "StreamHandler", "dump_traceback", "lastResort"}  # fmt: skip
DRAWERS = {"rich": "deploy.cli.grid"}
BECOMERS = ("exec", "spawn", "posix_spawn", "system", "popen")
STARTERS = {"run", "Popen", "call", "check_call", "check_output"}


def modules():
    for path in sorted([ROOT / "tasks.py", *ROOT.glob("deploy/**/*.py")]):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path.read_text()


def prints(name, source):
    """
    Yield each place in *source* that prints, or that lets a child process print.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=called)) if called in PRINTERS:
                if called != "input" or node.args:
                    yield f"{name}:{node.lineno}: {called}()"
            case ast.Attribute(value=ast.Name(id="sys"), attr=attr) if attr in STREAMS:
                yield f"{name}:{node.lineno}: sys.{attr}"
            case ast.ImportFrom(module="sys", names=names):
                for alias in names:
                    if alias.name in STREAMS:
                        yield f"{name}:{node.lineno}: from sys import {alias.name}"
            case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id="sys"), *_]):
                yield f"{name}:{node.lineno}: getattr(sys, ...)"
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="os"), attr="write"),
                args=[ast.Constant(value=1 | 2), *_],
            ):
                yield f"{name}:{node.lineno}: os.write()"
            case ast.Attribute(attr=attr) if attr in METHODS:
                yield f"{name}:{node.lineno}: {attr}"
            case ast.Constant(value="/dev/tty" | "/dev/stdout" | "/dev/stderr"):
                yield f"{name}:{node.lineno}: {node.value}"
            case ast.Import(names=names):
                for alias in names:
                    yield from drawn(name, node, alias.name)
            case ast.ImportFrom(module=str(module)):
                yield from drawn(name, node, module)


def drawn(name, node, module):
    package = module.partition(".")[0]
    if package in DRAWERS and name != DRAWERS[package]:
        yield f"{name}:{node.lineno}: import {module}"


def children(name, source):
    """
    Yield each start of a process in *source* whose output goes where ours goes.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="subprocess"), attr=attr), keywords=keywords
            ) if attr in STARTERS:
                given = {keyword.arg for keyword in keywords}
                if "capture_output" not in given and not {"stdout", "stderr"} <= given:
                    yield f"{name}:{node.lineno}: subprocess.{attr}"
            case ast.Attribute(value=ast.Name(id="os"), attr=attr) if attr.startswith(BECOMERS):
                yield f"{name}:{node.lineno}: os.{attr}"


@pytest.mark.parametrize(("name", "source"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_nothing_prints_outside_of_the_door(name, source):
    if name not in DOORS:
        assert list(prints(name, source)) == []
    if name not in CHILDREN:
        assert list(children(name, source)) == []


@pytest.mark.parametrize("name", [*DOORS, *CHILDREN])
def test_every_exception_is_needed(name):
    """
    An exception for a module that does not print any more leaves the list.
    """
    source = dict(modules())[name]
    assert [*prints(name, source), *children(name, source)]


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "import sys\nsys.stdout.write('x')",
        "import sys\nprint('x', file=sys.stderr)",
        "import sys\nsys.__stderr__.write('x')",
        "from sys import stderr",
        "import sys\ngetattr(sys, 'stdout').write('x')",
        "import os\nos.write(2, b'x')",
        "import traceback\ntraceback.print_exc()",
        "import logging\nlogging.basicConfig()",
        "import logging\nlogging.StreamHandler()",
        "from rich.console import Console",
        "import rich",
        "input('go? ')",
        "open('/dev/tty', 'w').write('x')",
    ],
)
def test_the_rule_would_notice(source):
    """
    Negative control.
    """
    assert list(prints("deploy.x", source))


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\nsubprocess.run(['x'])",
        "import subprocess\nsubprocess.Popen(['x'], stdout=subprocess.PIPE)",
        "import os\nos.execvp('x', ['x'])",
        "import os\nos.system('x')",
    ],
)
def test_the_rule_would_notice_a_child(source):
    assert list(children("deploy.x", source))


def test_the_rule_lets_others_pass():
    assert list(prints("deploy.x", "log.print('x'); os.write(fd, b'x'); input()")) == []
    quiet = "import subprocess\nsubprocess.run(['x'], capture_output=True)"
    assert list(children("deploy.x", quiet)) == []
