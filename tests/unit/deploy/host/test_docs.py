"""
docs/reference/journal.md says what the host program does.
"""

import re
from pathlib import Path

from deploy.host.protocol import REQUESTS, GoodRecord

PAGE = (Path(__file__).parents[4] / "docs" / "reference" / "journal.md").read_text()


def test_the_page_lists_every_verb_and_no_other():
    """
    In one table, each with what it asks of the lease.
    """
    table = PAGE[PAGE.index("| verb |") :]

    assert sorted(re.findall(r"^\| `([a-z.]+)` \|", table, re.MULTILINE)) == sorted(REQUESTS)


def test_the_page_lists_every_key_of_a_line(leased):
    """
    As they are written.
    """
    leased.call(GoodRecord(bundle="a" * 64, version="v1", slot="blue"))
    table = PAGE[PAGE.index("## A line") : PAGE.index("Events that")]

    written = set().union(*leased.journal())
    assert written == set(re.findall(r"`([a-z_]+)`", re.sub(r"\|[^|]*\|$", "|", table, flags=re.M)))
