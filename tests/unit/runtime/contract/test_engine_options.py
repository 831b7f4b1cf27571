"""
One schema of engine options: a new key takes two edits, tested on a copy of the tree.
"""

import filecmp
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from runtime.contract.engine_options import OPTIONS, EngineOptions, host_document

ROOT = Path(__file__).parents[4]
SCHEMA, EXAMPLE = "runtime/contract/engine_options.py", "inventories/example.yml"
PARTS = ("deploy", "runtime", "templates", "inventories", "tests/unit/deploy", "tests/golden")
EDITS = {
    SCHEMA: ("    gpus: int = ", "    spare_tokens: int = option(7, ge=1, le=99, since=4)\n"),
    EXAMPLE: (
        "  # GPUs per host for tensor parallelism",
        "  # Tokens to spare.\n  spare_tokens: 9 # default 7, from 1 to 99\n\n",
    ),
}
# Each place that has to know the key, in the copy.
PROBE = """
import sys
from pathlib import Path
from deploy.bundle.build import OVERRIDES
from deploy.inventory.load import load_fleet
from deploy.provision import runtime_unit
from runtime.engines.base.protocol import Load, decode_to_engine, encode
from runtime.server.config import load_config
from tests.unit.deploy.inventory.test_example import EXAMPLE, differences
from tests.unit.deploy.provision.builders import make_spec

root = Path.cwd()
assert EXAMPLE.is_relative_to(root), EXAMPLE
assert load_fleet("example", root=root).service.options.spare_tokens == 9
assert list(differences(EXAMPLE.read_text())) == []
host, release = root / "host.yml", root / "config.yml"
host.write_text(runtime_unit.config(make_spec(spare_tokens=8)))
assert "spare_tokens: 8" in host.read_text()
assert "spare_tokens" not in runtime_unit.config(make_spec())
assert "spare_tokens" in OVERRIDES
assert load_config({}, [host]).options.spare_tokens == 8
release.write_text("version: v1\\nspare_tokens: 5\\n")
options = load_config({}, [host, release]).options
load = decode_to_engine(encode(Load("/m", 1.0, options)))
assert load.options.spare_tokens == 5
print("known everywhere")
"""


@pytest.fixture
def tree(tmp_path):
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "tests/builders.py", tmp_path / "tests/builders.py")
    return tmp_path


def edit(tree, names):
    for name in names:
        marker, line = EDITS[name]
        text = (tree / name).read_text()
        assert text.count(marker) == 1, name
        (tree / name).write_text(text.replace(marker, line + marker))


def changed(tree):
    """
    Return the files of *tree* that differ from those of the checkout.
    """
    files = [path.relative_to(tree) for path in tree.rglob("*") if path.is_file()]
    return {str(path) for path in files if not filecmp.cmp(tree / path, ROOT / path, shallow=False)}


def probe(tree):
    argv = [sys.executable, "-B", "-c", PROBE]
    return subprocess.run(argv, cwd=tree, capture_output=True, text=True, check=False)


def test_a_new_option_changes_two_files(tree):
    """
    Fleet file, host file, bundle, runtime and load message accept it; no other file changes.
    """
    edit(tree, EDITS)
    assert changed(tree) == {SCHEMA, EXAMPLE}
    done = probe(tree)
    assert (done.stdout, done.stderr, done.returncode) == ("known everywhere\n", "", 0)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([SCHEMA], "has no attribute 'spare_tokens'|spare_tokens == 9|AssertionError"),
        ([EXAMPLE], "service.spare_tokens: unknown key"),
    ],
)
def test_one_of_the_two_edits_is_not_enough(tree, names, why):
    """
    Negative control: the probe notices the missing edit.
    """
    edit(tree, names)
    done = probe(tree)
    assert done.returncode == 1
    assert any(part in done.stderr for part in why.split("|")), done.stderr


def test_new_options_at_their_defaults_are_omitted():
    """
    Options that the oldest schema lacks are omitted at their defaults; all others are always sent.
    """
    options = EngineOptions()
    assert set(host_document(options)) == {
        name for name, each in OPTIONS.items() if each.rules.since == 1 and each.rules.in_fleet_file
    }
    said = host_document(replace(options, kv="fp8"))
    assert said == host_document(options) | {"kv": "fp8"}


def test_every_option_has_rules():
    """
    Fleet file, bundle and runtime derive their checks from them.
    """
    assert [field.name for field in fields(EngineOptions)] == list(OPTIONS)
    for name, each in OPTIONS.items():
        assert each.rules.allow(each.default), name
        assert each.rules.allow(each.fleet_default), name
