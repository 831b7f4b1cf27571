"""
Who may import torch: the engine's part that computes, and nobody in the API process.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMPUTE = {
    "runtime.engine.runner",
    "runtime.engine.sampling",
    "runtime.lab_training",
    "runtime.models.glm",
    "runtime.models.loader",
    "runtime.models.weights",
}


def top_imports(source):
    """
    Yield what *source* imports when it is imported.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def computes(source):
    return any(
        name in COMPUTE or name.split(".")[0] in ("torch", "safetensors")
        for name in top_imports(source)
    )


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", sorted(ROOT.glob("runtime/**/*.py")), ids=name_of)
def test_torch_is_imported_only_where_it_computes(path):
    """
    Everything else can be tested without it, and starts without it.
    """
    assert not computes(path.read_text()) or name_of(path) in COMPUTE


def test_a_slip_would_be_noticed():
    """
    Negative control.
    """
    assert computes("import torch")
    assert computes("from runtime.engine.runner import DenseRunner")
    assert not computes("def f():\n    import torch")


def test_the_api_process_never_loads_torch():
    """
    What the API process imports, all of it, in a fresh interpreter.
    """
    code = "import runtime.__main__, runtime.server, sys; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"
