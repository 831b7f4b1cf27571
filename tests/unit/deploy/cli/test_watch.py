import io
import json

import pytest

from deploy.cli.watch import EVERY_S, watch


class Stop(Exception):
    pass


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(documents, *, as_json):
    moments, slept = iter(documents), []

    def read():
        try:
            document = next(moments)
        except StopIteration:
            raise Stop from None
        return document, f"table of {document['n']}"

    with pytest.raises(Stop):
        watch(read, as_json=as_json, sleep=slept.append)
    assert slept == [EVERY_S] * len(documents)


def test_json_is_a_document_a_line(capsys):
    run([{"n": 1}, {"n": 1}], as_json=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"n": 1}] * 2


def test_without_a_terminal_a_table_is_printed_when_it_changes(capsys):
    run([{"n": 1}, {"n": 1}, {"n": 2}], as_json=False)
    assert capsys.readouterr().out == "table of 1\ntable of 2\n"


def test_a_terminal_is_redrawn(monkeypatch):
    monkeypatch.setattr("sys.stdout", Terminal())
    import sys

    run([{"n": 1}, {"n": 1}], as_json=False)
    assert sys.stdout.getvalue().count("\x1b[H") == 2
