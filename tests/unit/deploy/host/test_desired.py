import pytest

from deploy.host.protocol import STATE_MAX, LeaseAcquire, StateRead, StateWrite


@pytest.fixture
def operator(host):
    host.fence = host.call(LeaseAcquire("ann@desk:1", 30, epoch=7)).fence
    return host


def test_a_desired_state_is_read_as_it_was_written(operator):
    """
    With its epoch, its number and the hash of its text; `status` has the same stamp.
    """
    stamp = operator.call(StateWrite(1, '{"goal": "forward"} \u00fc'))

    got = operator.call(StateRead())
    assert (got.stamp, got.text) == (stamp, '{"goal": "forward"} \u00fc')
    assert operator.status().state == stamp
    assert (stamp.epoch, stamp.number) == (7, 1)


def test_a_host_without_a_desired_state_says_so(host):
    assert host.call(StateRead()).stamp is None
    assert host.status().state is None


def test_an_older_desired_state_is_refused(operator):
    """
    A write that arrives late never replaces a newer one; the same one again is harmless.
    """
    operator.call(StateWrite(2, "second"))
    operator.call(StateWrite(2, "second"))

    for late in (StateWrite(1, "first"), StateWrite(2, "another second")):
        assert "7.2" in operator.refusal(late).why
    assert operator.call(StateRead()).text == "second"


def test_the_first_write_of_a_newer_epoch_replaces_all_of_an_older_one(operator):
    operator.call(StateWrite(9, "old"))
    operator.clock.pass_s(31)
    operator.fence = operator.call(LeaseAcquire("bob@desk:2", 30, epoch=8)).fence

    operator.call(StateWrite(1, "new"))

    assert operator.call(StateRead()).text == "new"


def test_a_lease_without_an_epoch_writes_no_desired_state(host):
    host.lease()
    assert "no epoch" in host.refusal(StateWrite(1, "{}")).what


def test_a_desired_state_has_a_largest_size(operator):
    assert "too large" in operator.refusal(StateWrite(1, "x" * (STATE_MAX + 1))).what


@pytest.mark.parametrize("damage", ["", "{torn", "[]", "{}", '{"epoch": "7"}', "[" * 100_000])
def test_a_damaged_desired_state_is_none(operator, damage):
    """
    It never stops `status`; the other hosts have it.
    """
    operator.call(StateWrite(1, "text"))
    operator.layout.desired.write_text(damage)

    assert operator.call(StateRead()).stamp is None
    assert operator.status().state is None
