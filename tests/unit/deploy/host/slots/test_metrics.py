import contextlib

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from deploy.host.slots import metrics
from deploy.host.slots.metrics import MetricsError, parse_metrics, scan

LABEL = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def expected(text):
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


@given(st.lists(st.tuples(LABEL, LABEL, st.floats(0, 1e12)), max_size=8, unique_by=lambda r: r[:2]))
def test_what_prometheus_client_writes_is_read_as_its_own_parser_does(rows):
    """
    For any label values: quotes, backslashes, braces, and line separators of Unicode.
    """
    registry = CollectorRegistry()
    counter = Counter("a_total", 'help with "quotes" and {braces}', ["x", "y"], registry=registry)
    Gauge("b", "x", registry=registry).set(-1.5)
    Histogram("c", "x", registry=registry).observe(0.3)
    for x, y, value in rows:
        counter.labels(x, y).inc(value)
    text = prometheus_client.generate_latest(registry).decode()

    # The comments of its own format group the samples by family; sorted, the two are the same.
    assert sorted(map(repr, parse_metrics(text))) == sorted(
        repr(metrics.Sample(*sample)) for sample in expected(text)
    )


@pytest.mark.parametrize(
    "line",
    [
        'x{a="b"} 1',
        'x { a = "b" , } 1 1700000000',
        "\t x\t+Inf ",
        'x{a="\\\\\\"\\n\\q"} 1e3',
        "# HELP x {{{",
        "",
    ],
)
def test_the_format_is_read_as_it_is_documented(line):
    assert [tuple(sample) for sample in parse_metrics(line)] == expected(f"{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "x{",
        'x{a="b} 1',
        'x{a="b\\',
        'x{a="b"c="d"} 1',
        'x{a="b",a="c"} 1',
        "x{a=b} 1",
        "x one",
        "x 1 2 3",
        "{} 1",
        "<html>",
        "\x00",
    ],
)
def test_a_line_that_is_no_sample_is_an_error_with_its_number(line):
    with pytest.raises(MetricsError, match="line 2 of the metrics"):
        parse_metrics(f"good 1\n{line}\n")


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ("MAX_CHARS", "x 1\n" * 10),
        ("MAX_LINES", "x 1\n" * 10),
        ("MAX_LINE_CHARS", f'x{{a="{"b" * 30}"}} 1'),
        ("MAX_LABELS", "x{" + ",".join(f'a{i}="b"' for i in range(30)) + "} 1"),
    ],
)
def test_each_limit_holds(monkeypatch, limit, text):
    parse_metrics(text)  # negative control
    monkeypatch.setattr(metrics, limit, 8)
    with pytest.raises(MetricsError, match=r"allowed|more than"):
        parse_metrics(text)


ATTACKS = {
    "braces": "a{" + "} " * 4000,
    "spaces": "a" + " " * 8000 + "!",
    "words": "a 1" + " 1" * 4000,
    "open label": 'a{b="' + "c" * 8000,
    "backslashes": 'a{b="' + "\\" * 8000,
    "quotes": "a{" + 'b="",' * 1600,
    "names": "a" * 8000,
    "no match": "a{b=" * 2000,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_work_grows_with_the_length_and_not_faster(attack):
    """
    Each character is scanned a bounded number of times, whatever the text is.
    """
    line = ATTACKS[attack][: metrics.MAX_LINE_CHARS]
    reader = metrics._Line(line, 1)
    with contextlib.suppress(MetricsError):
        reader.sample()
    assert reader.scanned <= 4 * len(line) + 20


@given(st.text(st.sampled_from('a{}=",\\ \t\n1#'), max_size=200))
def test_any_text_is_samples_or_one_error_within_linear_work(text):
    try:
        _, scanned = scan(text)
    except MetricsError:
        return
    assert scanned <= 8 * len(text) + 20
