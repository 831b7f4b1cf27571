"""
Only the computing part of the engine may import torch; the API process never does.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMPUTE = (
    "runtime.bench",
    "runtime.engines.tensor_parallel.tp_worker",
    "runtime.engines.paged.check_files",
    "runtime.engines.paged.deferred",
    "runtime.engines.paged.device_memory",
    "runtime.engines.paged.embedding",
    "runtime.engines.paged.load_encoder",
    "runtime.engines.paged.load_engine",
    "runtime.engines.tensor_parallel.sharded",
    "runtime.engines.paged.processing",
    "runtime.engines.paged.prompt_scores",
    "runtime.engines.paged.runner",
    "runtime.engines.paged.transfers",
    "runtime.kernels",
    "runtime.models",
)
HEAVY = {"safetensors", "torch", "transformers", "triton"}
WEB = {
    "fastapi",
    "prometheus_client",
    "pydantic",
    "safetensors",
    "starlette",
    "tokenizers",
    "uvicorn",
    "yaml",
}
REFUSING = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {WEB}:
            raise ImportError("refused: " + name)

sys.meta_path.insert(0, Refuse())
"""


def top_imports(source):
    """
    Yield the modules that importing *source* may import, their parents included.
    """
    for node in ast.parse(source).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            yield from (".".join(parts[: count + 1]) for count in range(len(parts)))


def computes(source):
    """
    Return whether importing *source* imports a computing module.
    """
    imported, todo = set(), [source]
    while todo:
        for name in set(top_imports(todo.pop())) - imported:
            imported.add(name)
            todo.append(source_of(name))
    return not HEAVY.isdisjoint(imported)


@cache
def source_of(name):
    path = ROOT / name.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if name.startswith("runtime") and file.exists():
            return file.read_text()
    return ""


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def may_compute(name):
    return any(name == part or name.startswith(part + ".") for part in COMPUTE)


@pytest.mark.parametrize("path", sorted(ROOT.glob("runtime/**/*.py")), ids=name_of)
def test_only_computing_modules_import_torch(path):
    """
    All other modules can be tested, and can start, without torch.
    """
    assert may_compute(name_of(path)) or not computes(path.read_text())


@pytest.mark.parametrize(
    "slip",
    [
        "import torch",
        "import torch.nn",
        "from safetensors.torch import save_file",
        "from runtime.engines.paged.runner import PagedRunner",
        "from runtime.kernels import reference",
        "from runtime.kernels.quantize import Quantized",
    ],
)
def test_an_import_of_torch_would_be_noticed(slip):
    """
    Negative control: torch itself, and any module that imports it at any depth.
    """
    assert computes(slip)


@pytest.mark.parametrize(
    "fine",
    [
        "def f():\n    import torch",
        "from runtime.engines.__main__ import open_model",
        "from runtime.models.config import DecoderConfig",
    ],
)
def test_a_late_import_of_torch_is_allowed(fine):
    """
    Negative control of the negative control: an import in a function, and a module without torch.
    """
    assert not computes(fine)


def test_every_computing_module_of_the_rule_exists():
    """
    A rule about a removed module protects nothing.
    """
    assert all(source_of(name) for name in COMPUTE)


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("modules", "loaded"),
    [
        ("runtime.__main__, runtime.server.process", "set()"),
        ("runtime.engines.paged.runner", "{'torch'}"),
    ],
)
def test_the_api_process_loads_no_computing_module(modules, loaded):
    """
    Checked on all imports of the API process in a fresh interpreter; the runner is the control.
    """
    process = run(f"import sys, {modules}; print({{'torch', 'triton'}} & sys.modules.keys())")
    assert (process.stdout.strip(), process.stderr) == (loaded, "")


def test_the_engine_does_not_import_the_web_layer():
    """
    It starts where none of those packages is installed.
    """
    paged = [f"paged.{name}" for name in ("worker", "scheduler", "load_engine", "runner")]
    engine = ["__main__", *paged, "tensor_parallel.sharded", "tensor_parallel.tp_worker"]
    process = run(REFUSING + "".join(f"import runtime.engines.{name}\n" for name in engine))
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("name", ["runtime.server.process", "runtime.server.text"])
def test_the_blocked_packages_are_needed_by_the_api_process(name):
    """
    Negative control of the test above.
    """
    process = run(REFUSING + f"import {name}")
    assert process.returncode == 1
    assert "ImportError: refused: " in process.stderr
