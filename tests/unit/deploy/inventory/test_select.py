import pytest

from deploy.errors import UnknownHost
from deploy.inventory.select import select_hosts
from tests.unit.deploy.inventory.builders import make_fleet

HOSTS = {
    "hosts": {f"gpu-0{n}": {"address": f"192.0.2.{n}"} for n in range(1, 5)},
    "groups": {"canary": {"hosts": ["gpu-01"]}, "serving": {"hosts": ["gpu-03", "gpu-02"]}},
}


def names(root, limit):
    return [host.name[-1] for host in make_fleet(root, HOSTS, limit=limit).hosts]


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [
        (None, "1234"),
        ("gpu-02", "2"),
        ("gpu-04,gpu-01", "14"),
        (" gpu-04 , gpu-01 ", "14"),
        ("gpu-0[12]", "12"),
        ("gpu-*", "1234"),
        ("@canary", "1"),
        ("@serving,gpu-02,gpu-0?", "1234"),
        ("@serving", "23"),
    ],
)
def test_a_limit_chooses_hosts_in_the_order_of_the_file(tmp_path, limit, chosen):
    """
    Hosts, patterns and groups add up, and each host comes once.
    """
    assert list(chosen) == names(tmp_path, limit)


@pytest.mark.parametrize(
    ("limit", "near"),
    [
        ("gpu-1", "gpu-01"),
        ("gpu-01,gpu-0q", "gpu-0"),
        ("@canry", "@canary"),
        ("canary", "@canary"),
        ("", "name hosts"),
        ("gpu-01,", "name hosts"),
        ("GPU-01", ""),
        ("web*", "name hosts"),
    ],
)
def test_a_term_that_matches_nothing_is_refused(tmp_path, limit, near):
    """
    A limit that does not limit as meant never falls back to all hosts, nor to fewer.
    """
    with pytest.raises(UnknownHost) as caught:
        names(tmp_path, limit)
    assert near in caught.value.fix
    assert "gpu-01" in caught.value.why


def test_a_selection_keeps_the_rest_of_the_fleet(tmp_path):
    """
    Only the hosts differ.
    """
    fleet = make_fleet(tmp_path, HOSTS)
    one = select_hosts(fleet, "gpu-02")

    assert one.model_copy(update={"hosts": fleet.hosts}) == fleet
