"""
Every flag that a page or an error text gives a task is one of the task's, and cli.md lists all.
"""

import importlib
import re
from pathlib import Path

import pytest
from invoke.collection import Collection

from deploy.cli.program import SlipwayProgram

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if page.name != "CHANGELOG.md"  # tells of the past
]
SOURCES = [*ROOT.glob("deploy/**/*.py"), ROOT / "tasks.py"]
PLACES = sorted([*PAGES, *SOURCES])
REFERENCE = ROOT / "docs" / "reference" / "cli.md"
# `inv release --canary 10`: to the end of the command, which code, a comment or a pipe ends.
COMMAND = re.compile(
    r"(?:\./inv|(?<![\w.-])inv) (?:--help )?([a-z][a-z_-]*(?:\.[a-z_-]+)?)"
    r"((?:(?!\binv )[^\n`#|;])*)"
)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ROW = re.compile(r"^\| `([a-z.]+)` \|[^|]*\|([^|]*)\|$", re.MULTILINE)


def flags_by_task():
    """
    Return {task: its flags}, with the inverse ones (--no-fresh).
    """
    contexts = Collection.from_module(importlib.import_module("tasks")).to_contexts()
    return {
        context.name: {f for f in (*context.flags, *context.inverse_flags) if f.startswith("--")}
        for context in contexts
    }


def own_flags():
    """
    Return the flags that every task accepts, of invoke itself.
    """
    return {f"--{name}" for argument in SlipwayProgram().core_args() for name in argument.names}


def unknown_flags(text, tasks):
    """
    Yield what *text* gives to a task of *tasks* that has no such flag.
    """
    for task, rest in COMMAND.findall(text):
        if task in tasks:
            known = tasks[task] | own_flags()
            yield from (f"{task} {flag}" for flag in FLAG.findall(rest) if flag not in known)


def listed_flags(text):
    """
    Return {task: flags} as the table of the reference lists them.
    """
    section = text.partition("## Tasks and flags")[2].partition("\n## ")[0]
    return {task: set(FLAG.findall(flags)) for task, flags in ROW.findall(section)}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: str(place.relative_to(ROOT)))
def test_a_flag_that_is_named_exists(place):
    assert list(unknown_flags(place.read_text(), flags_by_task())) == []


def test_the_reference_lists_every_flag_of_every_task():
    assert listed_flags(REFERENCE.read_text()) == {
        task: {flag for flag in flags if not flag.startswith("--no-")}
        for task, flags in flags_by_task().items()
    }


def test_every_flag_has_a_help_text():
    """
    One sentence or more, that ends as one.
    """
    for context in Collection.from_module(importlib.import_module("tasks")).to_contexts():
        for argument in context.args.values():
            assert (argument.help or "").endswith("."), f"{context.name} {argument.name}"


def test_a_flag_that_is_gone_would_be_noticed():
    """
    Negative control: in code and in prose, of the task that it is given to and of no other.
    """
    tasks = {"lab.down": set(), "lab.up": {"--hosts"}, "provision": {"--check"}}
    text = (
        "`inv lab.down --keep`, `./inv lab.up --hosts 4`\n"
        "or inv provision --check, inv lab.up --no\n"
        "  ./inv provision --hosts x   # --later\n"
        "inv lab.up --debug; inv other --flag"
    )
    assert list(unknown_flags(text, tasks)) == [
        "lab.down --keep",
        "lab.up --no",
        "provision --hosts",
    ]


def test_a_flag_that_is_not_listed_would_be_noticed():
    """
    Negative control: only the rows of that section count.
    """
    text = "| `plan` | x | `--a` |\n## Tasks and flags\n| `plan` | x | `--b`, `--c-d` |\n## Next\n"
    assert listed_flags(text) == {"plan": {"--b", "--c-d"}}
