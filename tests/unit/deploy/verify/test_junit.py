"""
JUnit XML for CI: whatever a host said, the file is valid and its texts are only shown.
"""

from xml.etree import ElementTree

import pytest

from deploy.verify import run
from deploy.verify.junit import is_whole
from deploy.verify.report import Finding, read_junit
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
    """
    Return the file that `inv verify` leaves for CI.
    """
    path, of_pytest = tmp_path / "reports" / "verify.xml", tmp_path / "junit.xml"
    if text:
        of_pytest.write_text(text, encoding="utf-8")
    run._write(path, of_pytest, list(failed), read_junit(text) if text else ())
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
    monkeypatch.setattr(run, "make_visible", lambda root: None)
    raw = written(tmp_path, failed=[Finding("n1", "reachable", "\x1b[31mno")])
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring(raw)


def test_what_pytest_wrote_stays(tmp_path):
    raw = written(tmp_path, OF_PYTEST.format("a &lt; b"), [Finding("n2", "reachable", "gone")])
    failures = {
        case.get("name").partition("[")[0]: case.find("failure")
        for case in ElementTree.fromstring(raw).iter("testcase")
    }
    assert failures["test_port"].text == "a < b"
    assert failures["reachable"].get("message") == "gone"


def test_a_file_that_is_not_whole_is_noticed(tmp_path):
    """
    pytest was killed while it wrote: the run then says so, and reads nothing from it.
    """
    path = tmp_path / "junit.xml"
    assert not is_whole(path)
    path.write_text(OF_PYTEST.format("x")[:200])
    assert not is_whole(path)
    path.write_text(OF_PYTEST.format("x"))
    assert is_whole(path)
