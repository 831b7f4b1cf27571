from datetime import UTC, datetime

import pytest

from deploy.errors import UsageError
from deploy.provision.waves import next_wave, parse_waves, size_of
from deploy.provision.window import parse_window


@pytest.mark.parametrize(
    ("text", "hosts", "sizes"),
    [
        ("1", 8, [1, 1, 1]),
        ("1,25%", 8, [1, 2, 2]),
        ("1, 25%, 100%", 8, [1, 2, 8]),
        ("50%", 3, [1, 1]),
        ("10%", 4, [1]),  # never none
        ("99", 4, [4]),
    ],
)
def test_the_last_size_holds_for_later_waves(text, hosts, sizes):
    """
    A percentage of the fleet is rounded down, to one host at least.
    """
    waves = parse_waves(text)
    assert [size_of(waves, number, hosts) for number in range(len(sizes))] == sizes


@pytest.mark.parametrize(
    "text", ["", "0", "1,", "0%", "101%", "-1", "1.5", "all", "25 %", "٣", "1\n2", "9" * 40]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="--waves"):
        parse_waves(text)


@pytest.mark.parametrize(
    ("size", "needing", "closed", "away", "wave"),
    [
        (2, "abcd", "", "", "ab"),
        (2, "abcd", "c", "", "ca"),  # an earlier run left it closed
        (1, "abcd", "cd", "", "cd"),  # bringing back takes no other host away
        (2, "ab", "x", "", "xa"),  # closed, and rebooted already
        (2, "ab", "", "z", "a"),
        (1, "ab", "", "z", ""),
        (1, "ab", "a", "z", "a"),
        (3, "", "", "", ""),
    ],
)
def test_at_most_the_wave_is_away(size, needing, closed, away, wave):
    """
    Hosts that are away already count.
    """
    assert next_wave(size, list(needing), list(closed), set(away)) == tuple(wave)


@pytest.mark.parametrize(
    ("text", "utc", "is_open"),
    [
        ("02:00-05:00 UTC", "02:00", True),
        ("02:00-05:00 UTC", "01:59", False),
        ("02:00-05:00 UTC", "05:00", False),
        ("22:00-04:00 UTC", "23:30", True),
        ("22:00-04:00 UTC", "03:59", True),
        ("22:00-04:00 UTC", "12:00", False),
        ("02:00-05:00 Asia/Kolkata", "20:30", True),  # half an hour past
        ("02:00-05:00 Asia/Kolkata", "02:00", False),
    ],
)
def test_a_window_is_judged_in_its_time_zone(text, utc, is_open):
    """
    Also across midnight.
    """
    now = datetime.fromisoformat(f"2026-11-26T{utc}:00").replace(tzinfo=UTC)
    assert parse_window(text).is_open(now) is is_open


def test_a_window_without_a_zone_is_local_time():
    """
    Of the machine that judges it.
    """
    now = datetime(2026, 11, 26, 12, 30, tzinfo=UTC)
    local = now.astimezone()
    window = parse_window(f"{local:%H:%M}-{local.hour:02}:59")
    assert window.is_open(now)
    assert "local time" in str(window)


@pytest.mark.parametrize(
    "text",
    [
        *("", "02:00", "2-5", "02:00-02:00", "24:00-25:00", "02:00-05:00 Mars/Base"),
        *("02:00-05:00 ../../etc/passwd", "02:00-05:00 /etc", "02:00-05:00 UTC UTC", "٠٢:00-05:00"),
    ],
)
def test_what_is_no_window_is_refused(text):
    with pytest.raises(UsageError, match="--window"):
        parse_window(text)
