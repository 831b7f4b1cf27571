"""
Imports go one way, and pure modules stay pure.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RANKS = {
    "tasks": 7,
    "deploy.demo": 6.5,
    "deploy.report": 6,
    "deploy.wiring": 6,
    "deploy.lab": 5,
    "deploy.provision": 5,
    "deploy.release": 5,
    "deploy.verify": 5,
    "deploy.bundle": 4.5,
    "deploy.wheelhouse": 4,
    "deploy.templating": 3,
    "deploy.transport": 3,
    "deploy.inventory": 2,
    "deploy.versions": 2,
    "deploy.errors": 1,
    "deploy.layout": 1,
    "deploy.units": 1,
    "runtime.contract": 1,
}
# Goes to hosts alone, so it has the standard library and itself.  What both sides must agree on,
# such as the form of a manifest, lives there, and `deploy` may import it.
ON_HOSTS = "deploy.remote"
PURE = {
    "deploy.inventory.document",
    "deploy.inventory.schema",
    "deploy.inventory.select",
    "deploy.inventory.wording",
    "deploy.layout",
    "deploy.release.gates",
    "deploy.release.machine",
    "deploy.release.plan",
    "deploy.units",
    "runtime.contract",
}
IMPURE = {
    "asyncio", "fabric", "httpx", "multiprocessing", "os", "paramiko", "pyinfra", "random",
    "secrets", "shutil", "socket", "subprocess", "tempfile", "threading", "time", "torch",
}  # fmt: skip


def modules():
    for path in [ROOT / "tasks.py", *ROOT.glob("deploy/**/*.py"), *ROOT.glob("runtime/**/*.py")]:
        if path.exists():
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(p for p in parts if p != "__init__"), path.read_text()


def imports(source):
    """
    Yield the absolute names that *source* imports; relative imports are not used here.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name, package):
    return name == package or name.startswith(package + ".")


def ranked(name):
    """
    Return the ranked package that *name* belongs to, or None.
    """
    return max((p for p in RANKS if is_in(name, p)), key=len, default=None)


def complaints(name, source):
    own = ranked(name)
    if is_in(name, "deploy") and name != "deploy" and not is_in(name, ON_HOSTS) and own is None:
        yield f"{name} has no rank: give it one, with its line in ARCHITECTURE.md"
    for target in imports(source):
        other = ranked(target)
        top = target.split(".")[0]
        if top == "runtime" and not is_in(name, "runtime") and other is None:
            yield f"{name} imports {target}: only runtime.contract is shared"
        if top in ("deploy", "tasks") and is_in(name, "runtime"):
            yield f"{name} imports {target}: the runtime ships alone"
        bare = top in sys.stdlib_module_names or is_in(target, ON_HOSTS)
        if is_in(name, ON_HOSTS) and not bare:
            yield f"{name} imports {target}: hosts have only the standard library"
        if own and other and own != other and RANKS[other] >= RANKS[own]:
            yield f"{name} imports {target}: not downwards"
        if any(is_in(name, p) for p in PURE) and top in IMPURE:
            yield f"{name} imports {target}: {name} is pure"


@pytest.mark.parametrize(("name", "source"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_imports_go_one_way(name, source):
    """
    Each module imports only what stands below it.
    """
    assert list(complaints(name, source)) == []


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_exist(name):
    """
    A rule about a module that is gone protects nothing.
    """
    path = ROOT / name.replace(".", "/")
    assert path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("deploy.errors", "from deploy.release import plan"),
        ("deploy.units", "from deploy.errors import DeployError"),
        ("deploy.inventory.load", "from deploy.versions.matrix import load_matrix"),
        ("deploy.wheelhouse", "from deploy.bundle import build"),
        ("deploy.lab.up", "from deploy.provision.run import provision"),
        ("deploy.release.executor", "import deploy.demo.load"),
        ("deploy.release.plan", "import time"),
        ("deploy.release.machine", "from os import environ"),
        ("deploy.inventory.schema", "import subprocess"),
        ("deploy.transport.ssh", "from runtime.engine import Engine"),
        ("tasks", "from runtime import config"),
        ("runtime.api", "from deploy.errors import DeployError"),
        ("deploy.remote.lease", "from deploy.errors import LeaseHeld"),
        ("deploy.remote.lease", "import yaml"),
        ("deploy.wiring", "from deploy.demo.demo import run"),
        ("deploy.something", "import json"),
    ],
)
def test_the_rule_would_notice(name, source):
    """
    Negative control: each kind of breach is reported.
    """
    assert list(complaints(name, source))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("deploy.release.plan", "from deploy.inventory.schema import Fleet"),
        ("deploy.bundle.build", "from deploy.wheelhouse import ensure_lock"),
        ("deploy.bundle.manifest", "from deploy.remote.manifest import canonical"),
        ("deploy.remote.lease", "import json\nfrom deploy.remote.files import write"),
        ("deploy.inventory.load", "from deploy.inventory.schema import Fleet"),
        ("runtime.api", "from runtime.contract import LIVEZ"),
        ("tasks", "from deploy.release.executor import run"),
    ],
)
def test_the_rule_lets_the_right_way_pass(name, source):
    """
    Negative control of the negative control: not everything is a breach.
    """
    assert list(complaints(name, source)) == []
