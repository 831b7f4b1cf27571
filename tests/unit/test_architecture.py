"""
Imports go one way, and pure modules stay pure.
"""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RANKS = {
    "tasks": 12,
    "deploy.drill": 11,
    "deploy.bench": 10,
    "deploy.demo": 10,
    "deploy.cli": 9,
    "deploy.api_keys": 8,
    "deploy.wiring": 8,
    "deploy.lab.models": 8,  # a program of its own: nothing imports it
    "deploy.lab": 7,
    "deploy.provision": 7,
    "deploy.release": 7,
    "deploy.verify": 7,
    "deploy.bundle": 6,
    "deploy.wheelhouse": 5,
    "deploy.leases": 5,
    "deploy.certificates": 4,
    "deploy.templating": 4,
    "deploy.transport": 4,
    "deploy.inventory": 3,
    "deploy.private_files": 3,
    "deploy.versions": 3,
    "deploy.clock": 2,
    "deploy.errors": 2,
    "deploy.foreign_text": 2,
    "deploy.quoting": 2,
    "deploy.units": 2,
    "deploy.host": 1,
    "runtime": 10,
    "runtime.bench": 9,
    "runtime.server": 9,
    "runtime.engines": 8,
    "runtime.engines.tensor_parallel": 7,
    "runtime.engines.paged": 6,
    "runtime.engines.vllm": 6,
    "runtime.engines.base": 5,
    "runtime.chat": 2,
    "runtime.tools": 2,
    "runtime.structured": 2,
    "runtime.memory": 4,
    "runtime.models": 3,
    "runtime.kernels": 2,
    "runtime.contract": 1,
    "runtime.json_schema": 1,
    "runtime.plain_files": 1,
}
SHARED = "runtime.contract"  # all that others than the runtime may import of it
# Trains the lab's models, in a process of its own, so it alone also imports these.
LAB_MODELS, FOR_LAB_MODELS = "deploy.lab.models", ("runtime.models",)
# Goes to hosts alone, so it has the standard library and itself.  What both sides must agree on,
# such as the form of a manifest, lives there, and `deploy` may import it.
ON_HOSTS = "deploy.host"
PURE = {
    "deploy.demo.load_report",
    "deploy.drill.cells",
    "deploy.drill.faults",
    "deploy.drill.host_state",
    "deploy.drill.lines",
    "deploy.drill.report",
    "deploy.demo.report",
    "deploy.foreign_text",
    "deploy.inventory.document",
    "deploy.inventory.names",
    "deploy.inventory.schema",
    "deploy.inventory.select",
    "deploy.inventory.validation_messages",
    "deploy.host.layout",
    "deploy.provision.differences",
    "deploy.provision.driver.choice",
    "deploy.provision.driver.conflicts",
    "deploy.provision.driver.package_sets",
    "deploy.provision.driver.plan",
    "deploy.provision.driver.planner",
    "deploy.provision.requirements",
    "deploy.provision.resources",
    "deploy.release.evidence",
    "deploy.release.gates",
    "deploy.release.decide",
    "deploy.release.plan",
    "deploy.quoting",
    "deploy.release.rollback_target",
    "deploy.units",
    "deploy.versions.catalog",
    "deploy.versions.host_output",
    "deploy.versions.question",
    "deploy.versions.resolution",
    "deploy.versions.resolver",
    "deploy.versions.rules",
    "runtime.server.admission",
    "runtime.engines.paged.batcher",
    "runtime.bench.roofline",
    "runtime.bench.sample",
    "runtime.contract",
    "runtime.engines.paged.step",
    "runtime.memory.footprint",
    "runtime.memory.plan",
    "runtime.engines.paged.block_allocator",
    "runtime.engines.base.protocol",
    "runtime.engines.paged.queue",
    "runtime.engines.paged.oom_splits",
    "runtime.engines.vllm.protocol",
    "runtime.server.lifecycle",
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


def is_in(name, package):
    return name == package or name.startswith(package + ".")


def ranked(name):
    """
    Return the ranked package that *name* belongs to, or None.
    """
    return max((p for p in RANKS if is_in(name, p)), key=len, default=None)


def complaints(name, source):
    own = ranked(name)
    is_deploy = is_in(name, "deploy") and name != "deploy" and not is_in(name, ON_HOSTS)
    is_runtime = name.startswith("runtime.") and name != "runtime.__main__"
    if (is_deploy and own is None) or (is_runtime and own == "runtime"):
        yield f"{name} has no rank: give it one, with its line in ARCHITECTURE.md"
    for target in imports(source):
        other = ranked(target)
        top = target.split(".")[0]
        shared = (SHARED, *FOR_LAB_MODELS) if is_in(name, LAB_MODELS) else (SHARED,)
        is_foreign = top == "runtime" and not is_in(name, "runtime")
        if is_foreign and not any(is_in(target, package) for package in shared):
            yield f"{name} imports {target}: only {SHARED} is shared"
        if is_in(target, LAB_MODELS) and not is_in(name, LAB_MODELS):
            yield f"{name} imports {target}: run it as a program"
        if top in ("deploy", "tasks") and is_in(name, "runtime"):
            yield f"{name} imports {target}: the runtime ships alone"
        bare = top in sys.stdlib_module_names or is_in(target, ON_HOSTS)
        if is_in(name, ON_HOSTS) and not bare:
            yield f"{name} imports {target}: hosts have only the standard library"
        is_upwards = own and other and own != other and RANKS[other] >= RANKS[own]
        if is_upwards:
            yield f"{name} imports {target}: not downwards"
        if any(is_in(name, p) for p in PURE) and top in IMPURE:
            yield f"{name} imports {target}: {name} is pure"


@pytest.mark.parametrize(("name", "source"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_imports_go_one_way(name, source):
    """
    Each module imports only what stands below it.
    """
    assert list(complaints(name, source)) == []


def at_the_top(source):
    """
    Yield the statements of *source* that are no function's; those for types alone count too.
    """
    for node in ast.parse(source).body:
        yield from node.body if isinstance(node, ast.If) else [node]


def cycle(sources):
    """
    Return the modules of a cycle among *sources*, by name, each imported while it is; or None.
    """
    sorter = TopologicalSorter()
    for name, source in sources.items():
        for target in names_in(at_the_top(source)):
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
    assert cycle(others | {"c": "if TYPE_CHECKING:\n    import a"}) == ["a", "c", "b", "a"]


def test_ranks_are_whole_numbers():
    """
    A package between two ranks hides a cycle between its neighbours.
    """
    assert all(isinstance(rank, int) for rank in RANKS.values())


def ranks_of_the_page(text):
    """
    Return the ranks in the table of ARCHITECTURE.md, by package.
    """
    pairs = re.findall(r"\| (\d+) \| (`[^|]*)", text)
    return {name: int(rank) for rank, names in pairs for name in re.findall(r"`([a-z_.]+)`", names)}


def test_the_page_has_the_ranks():
    """
    The table of ARCHITECTURE.md; one of a package less is another table.
    """
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert {k: v for k, v in ranks_of_the_page(text).items() if k != "__main__"} == RANKS
    assert ranks_of_the_page(text.replace("`deploy.bundle`", "-", 1)) != ranks_of_the_page(text)


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
        ("deploy.release.controller", "import deploy.demo.load"),
        ("deploy.lab.models.build", "from runtime.server.text import TokenizerCodec"),
        ("deploy.demo.demo", "from deploy.lab.models import corpus"),
        ("deploy.release.plan", "import time"),
        ("deploy.release.decide", "from os import environ"),
        ("deploy.inventory.schema", "import subprocess"),
        ("deploy.transport.ssh", "from runtime.engines.paged.worker import Engine"),
        ("tasks", "from runtime.server import config"),
        ("runtime.server.api", "from deploy.errors import DeployError"),
        ("deploy.host.lease", "from deploy.errors import LeaseHeld"),
        ("deploy.host.lease", "import yaml"),
        ("deploy.wiring", "from deploy.demo.demo import run"),
        ("deploy.something", "import json"),
        ("deploy.release.controller", "from runtime.models.config import DecoderConfig"),
        ("runtime.kernels.attention.dispatch", "from runtime.models.decoder import DecoderLayer"),
        ("runtime.kernels.ops", "if TYPE_CHECKING:\n    from runtime.models import decoder"),
        ("runtime.engines.paged.worker", "from runtime.engines.tensor_parallel import ranks"),
        ("runtime.memory.plan", "from runtime.engines.base.protocol import Load"),
        ("runtime.loose", "import json"),
        ("runtime.models.decoder", "def f():\n    from runtime.engines.paged.step import Step"),
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
        ("deploy.lab.models.build", "from runtime.models.decoder import Decoder"),
        ("runtime.server.api", "from runtime.contract import LIVEZ"),
        ("runtime.kernels.ops", "from runtime.kernels.quantize import Quantized"),
        ("tasks", "from deploy.release.controller import run"),
    ],
)
def test_the_rule_lets_the_right_way_pass(name, source):
    """
    Negative control of the negative control: not everything is a breach.
    """
    assert list(complaints(name, source)) == []
