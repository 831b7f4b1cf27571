from pathlib import Path

import pytest

from deploy.host.layout import Layout
from deploy.host.protocol import HostError
from deploy.host.slots.haproxy import (
    Haproxy,
    merge,
    parse_servers_state,
    parse_stat,
    servers_of,
    state_without,
)
from deploy.host.system import System

RECORDED = Path(__file__).parent / "recorded"


def recorded(name):
    """
    Return HAProxy 2.6.12's recorded output, without its comment lines.
    """
    lines = (RECORDED / name).read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("##"))


def servers(which):
    stat = servers_of(parse_stat(recorded(f"{which}.stat.csv")), "runtime")
    state = parse_servers_state(recorded(f"{which}.state.txt"), "runtime")
    return {name: merge(stat[name], state[name]) for name in stat}


def test_columns_are_read_by_name():
    """
    So added or moved columns do not matter.
    """
    text = "# pxname,new,svname,scur\nruntime,1,blue,7\nruntime,1,BACKEND,9\nother,1,blue,3\n"

    assert servers_of(parse_stat(text), "runtime")["blue"]["scur"] == "7"
    assert list(servers_of(parse_stat(text), "runtime")) == ["blue"]


def test_a_state_of_another_version_is_refused():
    """
    Only version 1 of HAProxy's format is supported.
    """
    with pytest.raises(ValueError, match="version 1"):
        parse_servers_state("2\n# be_id\n", "runtime")


def test_drain_and_maint_have_no_weight():
    """
    The weight column keeps its number in drain and maint; the effective weight is 0.
    """
    by_slot = servers("drain_and_maint")

    assert {n: (s.admin, s.own_weight, s.weight) for n, s in by_slot.items()} == {
        "blue": ("maint", 90, 0),
        "green": ("drain", 10, 0),
    }
    assert (
        servers_of(parse_stat(recorded("drain_and_maint.stat.csv")), "runtime")["green"]["weight"]
        == "10"
    )


def test_a_draining_server_that_is_down_still_drains():
    """
    show stat says DOWN; the administrative state is in show servers state.
    """
    server = servers("drain_and_down")["green"]

    assert (server.admin, server.status, server.weight) == ("drain", "DOWN", 0)


def test_a_server_that_just_left_maint_is_not_yet_up():
    """
    HAProxy counts it as up before the first check; we do not.
    """
    server = servers("just_ready")["blue"]

    assert (server.admin, server.status, server.is_up) == ("ready", "UP 1/2", False)


def test_a_state_without_a_slot_gives_the_other_one_all_weight():
    """
    blue leaves maint, and runs until its first check; green is in maint with weight 0.
    """
    text = state_without(recorded("drain_and_maint.state.txt"), "green", "blue")

    keys = ("srv_admin_state", "srv_uweight", "srv_op_state")
    rows = parse_servers_state(text, "runtime")
    assert {name: tuple(row[key] for key in keys) for name, row in rows.items()} == {
        "blue": ("4", "100", "2"),
        "green": ("5", "0", "0"),
    }
    assert text.splitlines()[:2] == recorded("drain_and_maint.state.txt").splitlines()[:2]


def test_a_silent_haproxy_is_one_error(tmp_path):
    """
    Without a socket, the error names it.
    """
    with pytest.raises(HostError) as caught:
        Haproxy(System(Layout(str(tmp_path)))).servers()

    assert caught.value.kind == "CommandFailed"
    assert "haproxy.sock: No such file" in caught.value.why


class Answers(System):
    """
    A HAProxy with the recorded answers, in which the slot green has another name.
    """

    def haproxy(self, command):
        name = {"show stat": "just_ready.stat.csv", "show servers state": "just_ready.state.txt"}
        return recorded(name[command]).replace("green", "s2")


def test_an_haproxy_without_a_server_for_a_slot_is_refused(tmp_path):
    """
    One of another configuration: each verb names the slot, none ends as a defect.
    """
    with pytest.raises(HostError) as caught:
        Haproxy(Answers(Layout(str(tmp_path)))).servers()

    assert caught.value.why == "its backend runtime has no server green"
    assert "inv provision" in caught.value.fix


# -- a real one


def test_a_refusal_of_haproxy_is_an_error_with_its_message(proxy):
    """
    No output is success; any text is a refusal.
    """
    for wrong, said in (
        (lambda: proxy.control.set_admin("red", "ready"), "No such server"),
        (lambda: proxy.control.set_weight("blue", 300), "between 0 and 256"),
        (lambda: proxy.control.servers("nowhere"), "no backend named nowhere"),
    ):
        with pytest.raises(HostError) as caught:
            wrong()
        assert said in caught.value.why


def test_a_weight_is_absolute(proxy):
    """
    `set weight` without % is not relative to the configured 100.
    """
    proxy.control.set_weight("blue", 7)

    assert proxy.control.servers()["blue"].own_weight == 7
