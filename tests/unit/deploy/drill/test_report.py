"""
The tables and the document of a drill.
"""

from deploy.cli.grid import draw
from deploy.drill.cell_run import other_way
from deploy.drill.cells import Recovery, Task
from deploy.drill.checkout import Ended
from deploy.drill.faults import Fault
from deploy.drill.report import DrillReport
from deploy.errors import UsageError
from tests.unit.deploy.drill.builders import make_line, make_result


def make_report(*results, **changes):
    values = {"took_s": 90.0, "hosts": 2, "labs": 1}
    return DrillReport(results, **(values | changes))


def test_a_report_is_good_if_no_cell_is_red():
    assert make_report(make_result()).is_good
    assert not make_report(make_result(), make_result(settled_s=None)).is_good


def test_a_report_without_a_cell_that_was_reached_is_not_good():
    """
    It proves nothing.
    """
    assert not make_report().is_good
    assert not make_report(make_result(is_reached=False)).is_good


def test_the_table_has_a_row_a_line_and_a_column_a_fault():
    report = make_report(
        make_result(Fault.SIGKILL, settled_s=6.25),
        make_result(Fault.CRASH, settled_s=9.0, lost={"n1": 12}),
        make_result(Fault.CUT, versions={"n1": "v1", "n2": "v2"}),
        make_result(Fault.SIGKILL, make_line("lease.acquire"), Task.ROLLBACK, settled_s=None),
        skipped={"full disk": "no loop devices"},
    )
    grid = report.table()
    assert grid.columns == ("line", "SIGKILL", "cut", "crash")
    text = draw(grid, is_terminal=False, encoding="utf-8")
    for part in (
        "release: n1 traffic.set intent", "6.2", "9.0 -12", "6.0 m", "rollback: n1 lease.acquire",
        "RED", "not settled", "full disk: not run: no loop devices", "4 cells, 1 red",
    ):  # fmt: skip
        assert part in text


def test_a_recovery_that_took_another_way_is_marked():
    recovery = Recovery("resume", 0, 2.0, {"n1": "v1"}, fallback="rollback --to v1")
    report = make_report(make_result(settled_s=6.0, recovery=recovery))
    assert "6.0 f" in draw(report.table(), is_terminal=False, encoding="utf-8")
    assert report.as_json()["cells"][0]["recovery"]["fallback"] == "rollback --to v1"


def test_a_refused_resume_falls_back_for_known_reasons_only():
    def ended(code, what="", why="", fix=""):
        return Ended(code, 1.0, {"error": {"what": what, "why": why, "fix": fix}}, "")

    unlike = ("lab: no release is open", "hosts differ", "choose: inv rollback --to v2 moves n2")
    assert other_way(ended(3, *unlike)) == ("rollback", "--to", "v2")
    assert other_way(ended(3, "it is paused", *unlike[1:])) == ()
    taken_back = ("r: it was taken back, and does not go forward again", "aborted by me")
    assert other_way(ended(3, *taken_back, "inv abort takes the other hosts back too")) == (
        "abort",
    )
    assert other_way(ended(3, *taken_back, "inv rollback --to 0123abc takes")) == (
        "rollback",
        "--to",
        "0123abc",
    )
    assert other_way(ended(UsageError.exit_code, fix="or inv rollback ends the release"))
    assert other_way(ended(UsageError.exit_code, fix="inv rollback")) == ()


def test_the_page_names_the_lines_that_one_stands_for():
    line = make_line("lease.acquire", phase="event", merged=("n2 lease.acquire",))
    page = "\n".join(make_report(make_result(line=line)).page())
    assert "### `inv release`" in page
    assert "| n1 lease.acquire | 6.0 | n2 lease.acquire |" in page
    assert "inv rollback" not in page


def test_the_document_has_every_cell():
    document = make_report(make_result(), make_result(lost={"n2": 3})).as_json()
    assert document["outcome"] == "failed"
    assert (document["reached"], document["red"]) == (2, 1)
    good, red = document["cells"]
    assert (good["line"], good["fault"], good["is_good"]) == (
        "n1 traffic.set intent", "SIGKILL", True,
    )  # fmt: skip
    assert red["lost_elsewhere"] == 3
    assert red["recovery"]["task"] == "rollback"
