"""
The reference pages of journal and protocol are those of the code.
"""

import dataclasses
import re
from pathlib import Path
from typing import Optional

from deploy.host.protocol import REQUESTS, GoodRecord, Request
from tests.unit.deploy.host import protocol_page

JOURNAL = (Path(__file__).parents[4] / "docs" / "reference" / "journal.md").read_text()


def test_the_page_of_the_protocol_has_every_verb_and_every_field():
    """
    Written by `python -m tests.unit.deploy.host.protocol_page`.
    """
    text = protocol_page.PAGE.read_text()

    assert text == protocol_page.page(text)
    for verb in REQUESTS:
        assert f"### {verb}\n" in text


def test_a_new_field_would_be_noticed(monkeypatch):
    """
    Negative control: another field, or another verb, is another page.
    """

    @dataclasses.dataclass(frozen=True)
    class Explode(Request[GoodRecord]):
        """
        Explode.
        """

        VERB = "slot.explode"

        fuse_s: Optional[float] = None  # noqa: UP045

    monkeypatch.setitem(REQUESTS, "slot.explode", Explode)
    text = protocol_page.PAGE.read_text()

    assert protocol_page.page(text) != text
    assert "| `fuse_s` | number or null | Default: null. |" in protocol_page.page(text)


def test_the_page_lists_every_key_of_a_line(leased):
    """
    As they are written.
    """
    leased.call(GoodRecord(bundle="a" * 64, version="v1", slot="blue"))
    table = JOURNAL[JOURNAL.index("## A line") : JOURNAL.index("Events with")]

    written = set().union(*leased.journal())
    assert written == set(re.findall(r"`([a-z_]+)`", re.sub(r"\|[^|]*\|$", "|", table, flags=re.M)))
