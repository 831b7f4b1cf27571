"""
What the pages say exists does exist.
"""

import importlib
import re
import types
from pathlib import Path

import pytest
from invoke import Collection, Task

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if page.name != "CHANGELOG.md"  # tells of the past
)
TOPS = ("deploy", "runtime", "tests", "docs", "inventories", "templates", "requirements", ".ci")
PATH = re.compile(rf"(?<![\w/.~-])(?:{'|'.join(re.escape(top) for top in TOPS)})/[\w./*-]*[\w*/]")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\(([^)#:\s]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
BLOCK = re.compile(r"```.*?```", re.DOTALL)
TASK = re.compile(r"(?:\./inv|(?<![\w.-])inv(?:oke)?) ([a-z][a-z_-]*(?:\.[a-z_-]+)?)")
TEST = re.compile(r"`(test_\w+)`")
IN_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def missing_paths(text, folder):
    """
    Yield the paths and links of *text* that lead nowhere; NAME and * stand for any name.
    """
    for path in PATH.findall(text):
        pattern = path.rstrip("/").replace("NAME", "*")
        if not any(ROOT.glob(pattern)):
            yield path
    for link in LINK.findall(text):
        if not (folder / link).exists():
            yield link


def anchors(text):
    """
    Return the anchors of the headings of *text*, as GitHub and GitLab make them.
    """
    headings = HEADING.findall(BLOCK.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_headings(text, folder):
    """
    Yield the links of *text* to a heading that its page lacks.
    """
    for link, anchor in ANCHOR.findall(text):
        page = folder / link
        there = text if not link else page.read_text() if page.is_file() else ""
        if anchor not in anchors(there):
            yield f"{link}#{anchor}"


def task_names(module):
    """
    Return the names and aliases under which invoke offers the tasks of *module*.
    """
    offered = Collection.from_module(module).task_names
    return {name for task, aliases in offered.items() for name in (task, *aliases)}


def named_tasks(text):
    """
    Return the tasks that *text* names in code: `inv release`, ./inv lab.up.
    """
    return {name for code in IN_CODE.findall(text) for name in TASK.findall(code)}


def missing_tests(text):
    """
    Return the tests that *text* names and that no file under tests/ defines.
    """
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for text in sources for name in re.findall(r"def (test_\w+)\(", text)}
    return set(TEST.findall(text)) - defined


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_and_link_of_a_page_exists(page):
    """
    A page that names a file that is gone is worse than none.
    """
    assert list(missing_paths(page.read_text(), page.parent)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_heading_leads_to_one(page):
    """
    At night a runbook's link has to open the right section.
    """
    assert list(missing_headings(page.read_text(), page.parent)) == []


def test_a_link_to_no_heading_would_be_noticed():
    """
    Negative control: of this page and of another one; a comment in a code block is no heading.
    """
    text = "## By exit `code`\n```sh\n# Gone\n```\n[a](#by-exit-code) [b](#gone)"
    text += " [c](docs/README.md#reference) [d](docs/README.md#gone)"
    assert list(missing_headings(text, ROOT)) == ["#gone", "docs/README.md#gone"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_task_of_a_page_exists(page):
    """
    What the manual tells an operator to type is there.
    """
    named = named_tasks(page.read_text())
    assert not named or named - task_names(importlib.import_module("tasks")) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page):
    """
    An invariant whose test was renamed looks held and is not.
    """
    assert missing_tests(page.read_text()) == set()


def test_a_missing_test_would_be_noticed():
    """
    Negative control: of two tests that a page names, the one that nobody defines is reported.
    """
    own = test_a_missing_test_would_be_noticed.__name__
    assert missing_tests(f"`{own}`, `test_of_nothing_at_all`") == {"test_of_nothing_at_all"}


def test_the_pages_that_a_newcomer_opens_are_there():
    """
    README, architecture, changelog, how to contribute, the licence.
    """
    for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"):
        assert (ROOT / name).is_file(), name


def test_a_missing_path_or_link_would_be_noticed():
    """
    Negative control: each kind of slip is found, and what is right is not.
    """
    text = "`deploy/units.py`, deploy/gone.py, [x](gone.md), [y](#part), inventories/NAME.yml"
    assert list(missing_paths(text, ROOT)) == ["deploy/gone.py", "gone.md"]


def test_an_unknown_task_would_be_noticed():
    """
    Negative control: tasks are found in code, with their group, and only there.
    """
    text = "`inv relase` and\n```sh\n./inv lab.up --hosts 4\n```\nan inv outside"
    assert named_tasks(text) == {"relase", "lab.up"}

    module = types.ModuleType("tasks")
    module.ns = Collection(Task(lambda c: None, name="release"))
    module.ns.add_collection(Collection("lab", Task(lambda c: None, name="up")))
    assert named_tasks(text) - task_names(module) == {"relase"}


def test_paths_on_hosts_are_not_taken_for_ours():
    """
    Negative control: an absolute path that holds one of our folders' names is the host's.
    """
    assert list(missing_paths("/opt/slipway/deploy/x, ~/docs/y, example.com/tests/z", ROOT)) == []
