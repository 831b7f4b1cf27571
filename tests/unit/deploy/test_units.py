import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from deploy.units import (
    Bytes,
    Ratio,
    Seconds,
    format_duration,
    format_size,
    parse_duration_s,
    parse_ratio,
    parse_size_bytes,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("1.5m", 90),
        ("2h", 7200),
        ("1d", 86400),
        ("0s", 0),
        ("5 s", 5),
    ],
)
def test_a_duration_is_a_number_with_its_unit(text, seconds):
    """
    The units are ms, s, m, h and d; the number may have a fraction.
    """
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0B", 0), ("512MiB", 512 * 2**20), ("1.5GiB", 3 * 2**29), ("1TiB", 2**40), ("1KiB", 1024)],
)
def test_a_size_is_a_number_with_a_binary_unit(text, count):
    """
    The result is a whole number of bytes.
    """
    assert parse_size_bytes(text) == count
    assert isinstance(parse_size_bytes(text), int)


@pytest.mark.parametrize(("text", "ratio"), [("0%", 0), ("5%", 0.05), ("0.5%", 0.005), ("100%", 1)])
def test_a_ratio_is_a_percentage(text, ratio):
    """
    From 0% to 100%, both included.
    """
    assert parse_ratio(text) == pytest.approx(ratio)


@pytest.mark.parametrize("parse", [parse_duration_s, parse_size_bytes, parse_ratio])
@pytest.mark.parametrize(
    "text", ["", "30", 30, 0.05, None, True, "s", "-1s", "-5%", "1e3s", "5 % %", "nan s", ["30s"]]
)
def test_a_number_without_its_unit_is_refused(parse, text):
    """
    30 could be seconds or minutes.  The message has the value.
    """
    with pytest.raises(ValueError, match="should be ") as caught:
        parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_size_bytes, "8GB"),
        (parse_size_bytes, "8gib"),
        (parse_duration_s, "3 minutes"),
        (parse_duration_s, "1m30s"),
        (parse_ratio, "101%"),
    ],
)
def test_an_unknown_unit_is_refused(parse, text):
    """
    Only documented units are accepted: 8GB could mean two sizes.
    """
    with pytest.raises(ValueError, match="should be"):
        parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.25, "250ms"), (4.2, "4.2s"), (59.9, "59.9s"), (60, "1m00s"), (190, "3m10s")],
)
def test_a_duration_is_formatted_in_its_largest_unit(seconds, text):
    """
    Milliseconds, seconds with one decimal, or minutes and seconds.
    """
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (3 * 2**29, "1.5GiB"), (5 * 2**40, "5.0TiB")],
)
def test_a_size_is_formatted_in_its_largest_unit(count, text):
    """
    1.5GiB, not 1536.0MiB.
    """
    assert format_size(count) == text


@given(st.integers(0, 364), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_durations_keep_the_order_of_their_numbers(number, unit):
    """
    A larger number with the same unit is never shorter.
    """
    assert parse_duration_s(f"{number}{unit}") < parse_duration_s(f"{number + 1}{unit}")


@given(st.integers(0, 2**50))
def test_a_formatted_size_is_read_back_within_its_precision(count):
    """
    The output is valid input.
    """
    assert parse_size_bytes(format_size(count)) == pytest.approx(count, rel=0.06)


@pytest.mark.parametrize(
    ("kind", "text", "value"), [(Seconds, "30s", 30.0), (Bytes, "1KiB", 1024), (Ratio, "5%", 0.05)]
)
def test_typed_fields_parse_text_and_refuse_numbers(kind, text, value):
    """
    A field of one of these types reads its unit from the value.
    """
    assert TypeAdapter(kind).validate_python(text) == pytest.approx(value)
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_duration_s, "\u0661s"),
        (parse_duration_s, "1s\n"),
        (parse_duration_s, " 1s"),
        (parse_duration_s, "1\u00a0s"),
        (parse_duration_s, "366d"),
        (parse_duration_s, "9" * 400 + "s"),
        (parse_size_bytes, "\uff11GiB"),
        (parse_size_bytes, "1GiB\n"),
        (parse_size_bytes, "1025TiB"),
        (parse_size_bytes, "9" * 30 + "B"),
        (parse_ratio, "\u0665%"),
        (parse_ratio, "5%\n"),
    ],
)
def test_digits_of_other_scripts_line_ends_and_huge_numbers_are_refused(parse, text):
    """
    A deadline of 10^30 seconds overflows the clocks and timers that it reaches.
    """
    with pytest.raises(ValueError, match="should be"):
        parse(text)
