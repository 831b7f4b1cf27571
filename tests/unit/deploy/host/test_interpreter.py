"""
The Python that an environment leads to.
"""

import sys

import pytest

from deploy.host.interpreter import python_problem
from deploy.host.system import System


@pytest.fixture
def python(tmp_path):
    """
    Return a function that makes a link to a program with that text.
    """

    def make(text, mode=0o755):
        program = tmp_path / "python3.99"
        program.write_text(text)
        program.chmod(mode)
        link = tmp_path / "python"
        link.symlink_to(program)
        return link

    return make


def test_the_python_that_runs_this_is_good(tmp_path):
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert python_problem(System(), link) is None


def test_another_python_is_run(python):
    """
    Without the modules of any environment.
    """
    link = python('#!/bin/sh\ntest "$*" = "-I -S -B -c pass"\n')
    assert python_problem(System(), link) is None


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ("#!/bin/sh\necho no libpython >&2; exit 127\n", 0o755, "does not run: no libpython"),
        ("#!/bin/sh\nexit 1\n", 0o755, "does not run: status 1"),
        ("#!/no/such/shell\n", 0o755, "does not run"),
        ("", 0o644, "cannot be executed"),
    ],
)
def test_a_python_that_does_not_run_is_named(python, text, mode, why):
    assert why in python_problem(System(), python(text, mode))


def test_a_python_that_is_gone_is_named(tmp_path):
    link = tmp_path / "python"
    link.symlink_to(tmp_path / "python3.99")
    assert python_problem(System(), link) == f"{tmp_path}/python3.99 is gone"
