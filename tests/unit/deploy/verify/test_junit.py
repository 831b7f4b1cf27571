"""
JUnit XML for CI: whatever a host said, the file is valid and its texts are only shown.
"""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from deploy.verify import report
from deploy.verify.report import Finding, read_junit, write_junit
from tests.hostile_text import CORPUS, complaints

OF_PYTEST = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest">
<testcase classname="t" name="test_port[ssh://n1]"><failure message="{0}">{0}</failure>
<system-out>{0}</system-out></testcase></testsuite></testsuites>"""


def xml_escape(text):
    """
    Return *text* as pytest writes it: illegal characters replaced, others as they are.
    """
    legal = "".join(c for c in text if c in "\t\n\r" or 0x20 <= ord(c) < 0xD800)
    return (
        legal.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    )


def written(tmp_path, text="", failed=()):
    path = tmp_path / "reports" / "verify.xml"
    write_junit(path, text, failed, read_junit(text))
    return path.read_bytes()


def names(raw):
    return [element.get("name", "") for element in ElementTree.fromstring(raw).iter()]


@pytest.mark.parametrize("text", CORPUS, ids=lambda text: ascii(text)[:40])
def test_hostile_words_of_a_host_are_only_shown(tmp_path, text):
    """
    In findings of ours, and in what pytest wrote.
    """
    failed = [Finding(text, text, text), Finding("n1", "reachable", text)]
    for raw in (
        written(tmp_path, failed=failed),
        written(tmp_path, OF_PYTEST.format(xml_escape(text))),
    ):
        assert complaints(raw) == []
        assert len(ElementTree.fromstring(raw).findall(".//failure")) >= 1
        assert not any("\n" in name for name in names(raw))
        assert len(raw) < 1 << 20


def test_without_the_function_the_file_is_not_xml(tmp_path, monkeypatch):
    """
    Negative control: one ESC of a host, and no CI reads the report.
    """
    monkeypatch.setattr(report, "visible", lambda text, **_: text)
    raw = written(tmp_path, failed=[Finding("n1", "reachable", "\x1b[31mno")])
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring(raw)


def test_what_pytest_wrote_stays(tmp_path):
    raw = written(tmp_path, OF_PYTEST.format("a &lt; b"), [Finding("n2", "reachable", "gone")])
    cases = {c.get("name"): c.find("failure") for c in ElementTree.fromstring(raw).iter("testcase")}
    assert cases["test_port[ssh://n1]"].text == "a < b"
    assert cases["reachable[ssh://n2]"].get("message") == "gone"


def test_a_file_that_is_not_whole_has_no_results(tmp_path):
    """
    pytest was killed while it wrote: the findings say that its assertions were not made.
    """
    half = OF_PYTEST.format("x")[:200]
    assert read_junit(half) == ()
    raw = written(tmp_path, half, [Finding("n1", "the run", "not one assertion was made")])
    assert b"not one assertion was made" in raw
    assert Path(tmp_path).exists()
