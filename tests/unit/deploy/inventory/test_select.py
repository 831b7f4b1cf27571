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
    ("limit", "selected"),
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
def test_a_limit_selects_hosts_in_the_order_of_the_file(tmp_path, limit, selected):
    """
    The union of its hosts, patterns and groups, each host once.
    """
    assert list(selected) == names(tmp_path, limit)


@pytest.mark.parametrize(
    ("limit", "near"),
    [
        ("gpu-1", "gpu-01"),
        ("gpu-01,gpu-0q", "gpu-0"),
        ("@canry", "@canary"),
        ("canary", "@canary"),
        ("", "give hosts"),
        ("gpu-01,", "give hosts"),
        ("GPU-01", ""),
        ("web*", "give hosts"),
    ],
)
def test_a_term_that_matches_no_host_is_refused(tmp_path, limit, near):
    """
    A mistyped or empty limit never selects all hosts.
    """
    with pytest.raises(UnknownHost) as caught:
        names(tmp_path, limit)
    assert near in caught.value.fix
    assert "gpu-01" in caught.value.why


def test_a_selection_keeps_the_rest_of_the_fleet(tmp_path):
    """
    Only `hosts` differs, and `others` has those that were not selected.
    """
    fleet = make_fleet(tmp_path, HOSTS)
    one = select_hosts(fleet, "gpu-02")

    assert one.model_copy(update={"hosts": fleet.hosts, "others": ()}) == fleet
    assert one.others == tuple(host for host in fleet.hosts if host.name != "gpu-02")
