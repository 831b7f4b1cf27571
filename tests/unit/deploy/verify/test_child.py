"""
The pytest process of `inv verify`, in a world of settings that would skip assertions.
"""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from deploy.verify import child
from deploy.verify.plugin import refuse_other_plugins
from deploy.verify.report import read_junit

TWO_TESTS = """
import pytest

pytestmark = pytest.mark.parametrize("host", ["slipway://n1"])

def test_a(host):
    pass

def test_b(host):
    pass
"""
DROPS_A = "def pytest_collection_modifyitems(items):\n    items[:] = items[1:]\n"
# Name: variables of the caller, files in a directory of the caller, files above the tests.
HOSTILE = {
    "addopts": ({"PYTEST_ADDOPTS": "-k test_b"}, {}, {}),
    "plugins": ({"PYTEST_PLUGINS": "dropper"}, {"dropper.py": DROPS_A}, {}),
    "flag": ({"PYTEST_ADDOPTS": "-p dropper"}, {"dropper.py": DROPS_A}, {}),
    "conftest": ({}, {}, {"conftest.py": DROPS_A}),
    "pytest.ini": ({}, {}, {"pytest.ini": "[pytest]\naddopts = -k test_b\n"}),
    "pyproject": ({}, {}, {"pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-k test_b"\n'}),
    "functions": ({}, {}, {"tox.ini": "[pytest]\npython_functions = test_b\n"}),
    "sitecustomize": (
        {},
        {"sitecustomize.py": "import os\nos.environ['PYTEST_ADDOPTS'] = '-k test_b'\n"},
        {},
    ),
    "warnings": ({"PYTHONWARNINGS": "error", "FORCE_COLOR": "1", "PYTHONSTARTUP": "x.py"}, {}, {}),
}


def prepare(tmp_path, names):
    """
    Write the tests with the files of *names* around them; return their folder and the variables.
    """
    variables, caller, tests = {}, tmp_path / "caller", tmp_path / "above" / "tests"
    caller.mkdir()
    tests.mkdir(parents=True)
    (tests / "test_two.py").write_text(TWO_TESTS)
    for name in names:
        of_caller, files, above = HOSTILE[name]
        variables |= of_caller
        for folder, texts in ((caller, files), (tests.parent, above)):
            for file, text in texts.items():
                (folder / file).write_text(text)
    return tests, variables | {"PYTHONPATH": str(caller)}


def test_nothing_of_the_caller_reaches_the_assertions(tmp_path, monkeypatch):
    """
    Neither its environment nor files beside or above the tests; progress has no colour.
    """
    tests, variables = prepare(tmp_path, HOSTILE)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tests.parent)
    lines = []

    xml, why = child.run_pytest(tests, ["n1"], tmp_path, lines.append, 600.0)

    assert why is None
    assert sorted(case.test for case in read_junit(xml.read_text())) == ["test_a", "test_b"]
    assert len(lines) == 2
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "warnings"])
def test_each_of_them_alone_would_drop_an_assertion(tmp_path, name):
    """
    Negative control: a plain pytest runs one of the two.
    """
    tests, variables = prepare(tmp_path, [name])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(
        argv,
        cwd=tests.parent,
        env=environment | variables | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_pytest_that_cannot_run_says_why(tmp_path):
    """
    Missing tests, or an internal error of pytest.
    """
    _, why = child.run_pytest(tmp_path / "nowhere", ["n1"], tmp_path, lambda _: None, 600.0)
    assert why is not None
    assert "pytest ended with status" in why


def test_no_variable_of_pytest_or_python_is_passed_on(tmp_path):
    """
    Other variables are, such as the SSH agent's.
    """
    agent = {"SSH_AUTH_SOCK": "/run/agent"}
    caller = {name: "x" for variables, _, _ in HOSTILE.values() for name in variables}
    caller |= {"PYTHONPATH": "/x", "PYTHONHOME": "/x", "COV_CORE_SOURCE": "x"}
    env = child.pytest_environment(caller | agent, tmp_path)
    assert env.items() >= agent.items()
    assert set(env) == {
        *agent, child.ENV_EXPECTED, child.ENV_HOSTS, "PYTEST_DISABLE_PLUGIN_AUTOLOAD",
        "PYTHONNOUSERSITE", "PYTHONSAFEPATH",
    }  # fmt: skip


def config_with(name, plugin):
    """
    Return a pytest configuration with *plugin* among its own.
    """
    own = ModuleType("tests.testinfra.conftest")
    own.__file__ = "/repository/tests/testinfra/conftest.py"
    plugins = [("main", sys.modules["_pytest.main"]), ("own", own), ("gone", None), (name, plugin)]
    return SimpleNamespace(
        getoption={"confcutdir": "/repository/tests/testinfra"}.__getitem__,
        pluginmanager=SimpleNamespace(list_name_plugin=lambda: plugins),
    )


def other_conftest():
    module = ModuleType("conftest")
    module.__file__ = "/repository/tests/testinfra/more/conftest.py"
    return module


class Dropper:
    """
    A plugin that is an object, as `config.pluginmanager.register` takes it.
    """


@pytest.mark.parametrize("plugin", [ModuleType("pytest_dropper"), other_conftest(), Dropper()])
def test_it_refuses_to_run_beside_another_plugin(plugin):
    """
    A module, a conftest.py in a folder of the assertions, an object; the error names it.
    """
    with pytest.raises(pytest.UsageError, match="dropper is not one of inv verify"):
        refuse_other_plugins(config_with("dropper", plugin))


@pytest.mark.parametrize("name", ["_pytest.main", "xdist.plugin", "testinfra.plugin"])
def test_it_runs_beside_its_own(name):
    """
    Negative control.
    """
    refuse_other_plugins(config_with("own", ModuleType(name)))
