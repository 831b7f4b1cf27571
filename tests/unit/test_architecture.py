"""
Imports go one way, and pure modules stay pure.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
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
    "deploy.host.layout": 1,
    "deploy.units": 1,
    "runtime.bench": 6,
    "runtime.vllm": 6,
    "runtime.engine": 5,
    "runtime.engine.protocol": 2,  # nouns, which the plan of memory shares
    "runtime.memory": 4.5,
    "runtime.models": 4,
    "runtime.kernels": 3,
    "runtime.models.quantize": 2,  # kernels read what it packs
    "runtime.errors": 1.5,
    "runtime.contract": 1,
}
SHARED = "runtime.contract"  # all that others than the runtime may import of it
# Goes to hosts alone, so it has the standard library and itself.  What both sides must agree on,
# such as the form of a manifest, lives there, and `deploy` may import it.
ON_HOSTS = "deploy.host"
PURE = {
    "deploy.inventory.document",
    "deploy.inventory.schema",
    "deploy.inventory.select",
    "deploy.inventory.validation_messages",
    "deploy.host.layout",
    "deploy.provision.differences",
    "deploy.provision.requirements",
    "deploy.provision.resources",
    "deploy.release.gates",
    "deploy.release.machine",
    "deploy.release.plan",
    "deploy.units",
    "runtime.admission",
    "runtime.batcher",
    "runtime.bench.roofline",
    "runtime.bench.sample",
    "runtime.contract",
    "runtime.engine.batch",
    "runtime.memory.footprint",
    "runtime.memory.plan",
    "runtime.engine.pages",
    "runtime.engine.protocol",
    "runtime.engine.queue",
    "runtime.engine.split",
    "runtime.vllm.protocol",
    "runtime.lifecycle",
    "runtime.models.config",
    "runtime.models.families",
    "runtime.models.shard",
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
    yield from names_in(ast.walk(ast.parse(source)))


def names_in(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_for_types(source):
    """
    Return what stands under `if TYPE_CHECKING:` in *source*, and is not imported when it runs.
    """
    return {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for name in names_in(node.body)
    }


def is_in(name, package):
    return name == package or name.startswith(package + ".")


def ranked(name):
    """
    Return the ranked package that *name* belongs to, or None.
    """
    return max((p for p in RANKS if is_in(name, p)), key=len, default=None)


def complaints(name, source):
    own, for_types = ranked(name), imports_for_types(source)
    if is_in(name, "deploy") and name != "deploy" and not is_in(name, ON_HOSTS) and own is None:
        yield f"{name} has no rank: give it one, with its line in ARCHITECTURE.md"
    for target in imports(source):
        other = ranked(target)
        top = target.split(".")[0]
        if top == "runtime" and not is_in(name, "runtime") and not is_in(target, SHARED):
            yield f"{name} imports {target}: only {SHARED} is shared"
        if top in ("deploy", "tasks") and is_in(name, "runtime"):
            yield f"{name} imports {target}: the runtime ships alone"
        bare = top in sys.stdlib_module_names or is_in(target, ON_HOSTS)
        if is_in(name, ON_HOSTS) and not bare:
            yield f"{name} imports {target}: hosts have only the standard library"
        is_upwards = own and other and own != other and RANKS[other] >= RANKS[own]
        if is_upwards and target not in for_types:
            yield f"{name} imports {target}: not downwards"
        if any(is_in(name, p) for p in PURE) and top in IMPURE:
            yield f"{name} imports {target}: {name} is pure"


@pytest.mark.parametrize(("name", "source"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_imports_go_one_way(name, source):
    """
    Each module imports only what stands below it.
    """
    assert list(complaints(name, source)) == []


def cycle(sources):
    """
    Return the modules of a cycle among *sources*, by name, each imported while it is; or None.
    """
    sorter = TopologicalSorter()
    for name, source in sources.items():
        for target in names_in(ast.parse(source).body):
            # `from package import module` or `from module import thing`.
            found = next((n for n in (target, target.rpartition(".")[0]) if n in sources), None)
            if found:
                sorter.add(name, found)
    try:
        sorter.prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_module_waits_for_itself():
    """
    What a module imports at its top does not, by whatever way, import the module.
    """
    assert cycle(dict(modules())) is None


def test_a_cycle_would_be_noticed():
    """
    Negative control; an import within a function comes later, and closes none.
    """
    others = {"a": "from b import x", "b": "import c"}
    assert cycle(others | {"c": "from a import y"}) == ["a", "c", "b", "a"]
    assert cycle(others | {"c": "def f():\n    import a"}) is None


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
        ("deploy.host.lease", "from deploy.errors import LeaseHeld"),
        ("deploy.host.lease", "import yaml"),
        ("deploy.wiring", "from deploy.demo.demo import run"),
        ("deploy.something", "import json"),
        ("deploy.release.executor", "from runtime.errors import ModelError"),
        ("runtime.kernels.attend", "from runtime.models.decoder import DecoderLayer"),
        ("runtime.models.decoder", "def f():\n    from runtime.engine.batch import Step"),
        ("runtime.memory.plan", "import torch"),
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
        ("deploy.bundle.store", "from deploy.host.bundle.manifest import canonical"),
        ("deploy.host.lease", "import json\nfrom deploy.host.files import write"),
        ("deploy.inventory.load", "from deploy.inventory.schema import Fleet"),
        ("runtime.api", "from runtime.contract import LIVEZ"),
        ("runtime.kernels.ops", "from runtime.models.quantize import Quantized"),
        ("runtime.kernels.attend", "if TYPE_CHECKING:\n    from runtime.models import decoder"),
        ("tasks", "from deploy.release.executor import run"),
    ],
)
def test_the_rule_lets_the_right_way_pass(name, source):
    """
    Negative control of the negative control: not everything is a breach.
    """
    assert list(complaints(name, source)) == []
