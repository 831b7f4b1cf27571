"""
Which journal lines the drill hits, and which of them stand for others.
"""

from deploy.drill.lines import LineMatcher, distinct_lines, lines_of, select_lines
from tests.unit.deploy.drill.builders import make_line, make_seen

GAP_S = 1.5


def names(seen):
    return [line.name for line in distinct_lines(seen, wave_gap_s=GAP_S)]


def test_a_line_is_told_apart_from_an_earlier_one_of_its_step():
    """
    The canary's share and the whole traffic are set by the same step.
    """
    seen = [make_seen("n1 traffic.set intent"), make_seen("n1 traffic.set intent")]
    assert [line.name for line in lines_of(seen)] == [
        "n1 traffic.set intent",
        "n1 traffic.set 2 intent",
    ]


def test_a_matcher_takes_its_line_alone():
    """
    Neither the same step of another host, nor an earlier or a later one.
    """
    matcher = LineMatcher(make_line(occurrence=2))
    texts = [
        "n1 traffic.set intent", "n2 traffic.set intent", "n1 traffic.set result",
        "n1 traffic.set intent", "n1 traffic.set intent",
    ]  # fmt: skip
    assert [matcher.matches(make_seen(text)) for text in texts] == [
        False, False, False, True, False,
    ]  # fmt: skip


def test_hosts_of_one_wave_are_hit_once():
    """
    The first host stands for the others, and says so.
    """
    seen = [make_seen("n1 lease.acquire", 0.0), make_seen("n2 lease.acquire", 0.3)]
    [line] = distinct_lines(seen, wave_gap_s=GAP_S)
    assert (line.name, line.merged) == ("n1 lease.acquire", ("n2 lease.acquire",))


def test_hosts_of_two_waves_are_hit_one_by_one():
    """
    Between the two waves the fleet serves two versions: that is the state that counts.
    """
    seen = [make_seen("n1 slot.start intent", 0.0), make_seen("n2 slot.start intent", 6.0)]
    assert names(seen) == ["n1 slot.start intent", "n2 slot.start intent"]


def test_a_result_is_hit_with_the_next_line_of_its_host():
    """
    Both find the host in the same state; the next line is also that of an effect in flight.
    """
    seen = [
        make_seen("n1 slot.start intent"),
        make_seen("n1 slot.start result"),
        make_seen("n1 traffic.set intent"),
    ]
    start, traffic = distinct_lines(seen, wave_gap_s=GAP_S)
    assert start.merged == ()
    assert traffic.merged == ("n1 slot.start result",)


def test_the_last_result_of_a_host_is_hit_itself():
    """
    No other line finds its effect done.
    """
    seen = [make_seen("n1 retire intent"), make_seen("n1 retire result")]
    assert names(seen) == ["n1 retire intent", "n1 retire result"]


def test_a_step_that_only_reads_is_hit_with_the_one_before():
    seen = [
        make_seen("n1 slot.start intent"),
        make_seen("n1 golden intent"),
        make_seen("n1 golden result"),
    ]
    [line] = distinct_lines(seen, wave_gap_s=GAP_S)
    assert line.name == "n1 slot.start intent"
    assert set(line.merged) == {"n1 golden intent", "n1 golden result"}


def test_no_line_is_dropped():
    """
    Each line of a run is hit, or named as merged into one that is.
    """
    texts = [
        "n1 lease.acquire", "n2 lease.acquire", "n1 slot.start intent", "n1 slot.start result",
        "n1 golden intent", "n1 golden result", "n1 traffic.set intent", "n1 traffic.set result",
        "n2 slot.start intent", "n2 slot.start result", "n1 retire intent", "n2 retire intent",
        "n2 retire result", "n1 retire result", "n1 release.end", "n2 release.end",
    ]  # fmt: skip
    seen = [make_seen(text, 0.4 * index) for index, text in enumerate(texts)]
    lines = distinct_lines(seen, wave_gap_s=GAP_S)
    told = [name for line in lines for name in (line.name, *line.merged)]
    assert sorted(told) == sorted(line.name for line in lines_of(seen))


def test_lines_are_selected_by_a_part_of_their_name():
    lines = [make_line("slot.start"), make_line("traffic.set"), make_line("retire")]
    assert select_lines(lines, ["slot", "retire"]) == [lines[0], lines[2]]
    assert select_lines(lines, []) == lines
