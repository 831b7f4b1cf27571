import os
from pathlib import Path

import pytest
import yaml

from deploy.errors import InventoryError
from deploy.inventory.load import fleet_names, load_fleet
from deploy.inventory.names import Jump, JumpChain
from deploy.inventory.schema import Phase, ReleasePolicy
from tests.unit.deploy.inventory.builders import fleet_data, make_fleet, write_fleet

ROOT = Path(__file__).parents[4]


def refusal(root, changes=None, *, text=None, known_rows=None):
    with pytest.raises(InventoryError) as caught:
        make_fleet(root, changes, text=text, known_rows=known_rows)
    return caught.value


def test_a_minimal_file_takes_every_default(tmp_path):
    """
    A row, hosts and a signer are all that a file needs.
    """
    fleet = make_fleet(tmp_path)

    assert [host.name for host in fleet.hosts] == ["n1", "n2"]
    assert fleet.hosts[0].row == "torch-2.3-cu121"
    assert (fleet.hosts[0].ssh.port, fleet.hosts[0].ssh.user) == (22, "root")
    assert fleet.release.canary.duration == 60.0


@pytest.mark.parametrize("name", fleet_names(ROOT))
def test_the_files_of_the_repository_load(name):
    """
    Every fleet file in inventories/ is valid.
    """
    assert load_fleet(name, root=ROOT).hosts


def test_four_fleets_are_shipped():
    """
    The lab to try things in, that of the demo, a production fleet to copy from, and the reference.
    """
    assert {"demo", "example", "gpu-prod", "lab"} <= set(fleet_names(ROOT))


def test_production_is_eight_hosts_behind_a_bastion_in_two_groups():
    """
    gpu-prod is an example of a production fleet.
    """
    fleet = load_fleet("gpu-prod", root=ROOT)

    assert [f"gpu-0{n}" for n in range(1, 9)] == [host.name for host in fleet.hosts]
    assert {"canary", "serving"} == {group for host in fleet.hosts for group in host.groups}
    assert all(host.ssh.jump for host in fleet.hosts)
    assert set(fleet.service.api_tokens) == set(fleet.secrets)


def test_a_host_overrides_its_groups_and_a_group_overrides_the_fleet(tmp_path):
    """
    For `row` and `vars`; `ssh` has no group level.
    """
    fleet = make_fleet(
        tmp_path,
        {
            "ssh": {"user": "ops", "port": 2022, "jump": "j@bastion"},
            "groups.a": {"hosts": ["n1", "n2"], "row": "of-a", "vars": {"x": 1, "y": 1}},
            "hosts.n1.row": "own",
            "hosts.n1.vars": {"y": 2},
            "hosts.n1.ssh": {"port": 22},
        },
    )

    n1, n2 = fleet.hosts
    assert (n1.row, n2.row) == ("own", "of-a")
    assert (n1.vars, n2.vars) == ({"x": 1, "y": 2}, {"x": 1, "y": 1})
    assert (n1.ssh.user, n1.ssh.port, n1.ssh.jump) == (
        "ops",
        22,
        JumpChain((Jump("j", "bastion"),)),
    )
    assert n2.ssh.port == 2022


def test_relative_paths_start_from_the_repository(tmp_path):
    """
    The meaning of a path does not depend on the current directory.
    """
    fleet = make_fleet(tmp_path, {"ssh.key": "keys/id", "secrets.t": {"file": "keys/t"}})

    assert tmp_path / "keys/id" == fleet.hosts[0].ssh.key
    assert tmp_path / "keys/sign" == fleet.signing.key
    assert tmp_path / "keys/t" == fleet.secrets["t"].file
    assert Path("~/.ssh/known_hosts").expanduser() == fleet.hosts[0].ssh.known_hosts


def test_a_fleet_may_be_named_by_its_path(tmp_path):
    """
    A name that ends in .yml is a path.
    """
    path = write_fleet(tmp_path, name="elsewhere")

    assert load_fleet(str(path), root=ROOT).name == "elsewhere"
    assert load_fleet("inventories/elsewhere.yml", root=tmp_path).name == "elsewhere"


def test_an_unknown_fleet_names_the_nearest_and_lists_what_exists():
    """
    Under `fix` the most similar name, under `why` all names.
    """
    with pytest.raises(InventoryError) as caught:
        load_fleet("gpu-prd", root=ROOT)

    assert caught.value.fix == "did you mean gpu-prod?"
    assert all(name in caught.value.why for name in fleet_names(ROOT))


@pytest.mark.parametrize("name", ["../inventories/test", "nope.yml", "inventories.yml", ""])
def test_a_name_never_leads_out_of_the_folder(tmp_path, name):
    """
    Only a path that ends in .yml is a path, and it has to be a file.
    """
    write_fleet(tmp_path)
    (tmp_path / "inventories.yml").mkdir()
    with pytest.raises(InventoryError):
        load_fleet(name, root=tmp_path)


def test_an_error_has_file_key_rule_value_and_line(tmp_path):
    """
    For a file with one problem, `why` quotes the line.
    """
    error = refusal(tmp_path, {"release.canary": {"min_requests": "lots"}})

    assert (
        error.what
        == 'inventories/test.yml: release.canary.min_requests: should be a whole number, got "lots"'
    )
    assert "min_requests: lots" in error.why
    assert "line 13 of inventories/test.yml" in error.fix


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(tmp_path):
    """
    So that an operator can correct a file in one pass.
    """
    error = refusal(
        tmp_path,
        {
            "row": 5,
            "groups": {"a": {"hosts": ["n3"]}},
            "service": {"port": 0, "prot": 1, "api_tokens": ["t"]},
        },
    )

    assert error.what == "inventories/test.yml: 5 problems"
    paths = ["row:", "groups.a.hosts[0]:", "service.port:", "service.prot:", "api_tokens[0]:"]
    places = [error.why.index(path) for path in paths]
    assert sorted(places) == places


def test_a_duplicate_key_does_not_hide_other_problems(tmp_path):
    """
    Problems of the text and of its values are in one list.
    """
    text = yaml.safe_dump(fleet_data()) + "row: again\nservice: {port: 0}\n"

    why = refusal(tmp_path, text=text).why

    assert "row: duplicate key" in why
    assert "service.port: should be at least 1, got 0" in why


WRONG_VALUES = {
    "row": [None, 5, True],
    "ssh": [None, "root", []],
    "ssh.port": [0, 65536, "22", 22.0, True, None],
    "ssh.user": [1, ["root"], "root\nProxyCommand touch x", "-oProxyCommand=x", "a b", ""],
    "ssh.jump": ["bastion", "a@b:c", "a b@c"],
    "ssh.connect_timeout": [10, "10", "10 sec", "-1s", "0s"],
    "ssh.command_timeout": ["0s"],
    "ssh.keepalive": ["0s"],
    "ssh.key": [5, "~root/x", "$HOME/x", "a\x00", "%d/id", "-x"],
    "hosts": [None, {}, [], "n1"],
    "hosts.N1": [{"address": "192.0.2.9"}],
    "hosts.n1.address": ["", "300.1.2.3", "10.0.0", "a b", "u@h", "http://h", "-x", 5],
    "hosts.n1.vars": [{"x": [1]}, {"x": {}}, [1]],
    "hosts.n1.ssh.port": [0],
    "hosts.n1.row": [5],
    "groups.a": [{}, {"hosts": "n1"}, {"hosts": ["n9"]}],
    "mirrors.apt": [
        5,
        "deb http://x/ bookworm main",
        [{"uris": ["http://x"], "suites": ["a"], "components": ["main"], "trusted": "yes"}],
        [{"uris": ["file:///x"], "suites": ["a"], "components": ["main"]}],
        [{"uris": [], "suites": ["a"], "components": ["main"]}],
        [{"uris": ["http://x"]}],
        [{"uris": ["http://x"], "distribution": "fedora"}],
        [{"uris": ["http://x"], "suites": ["a"], "archive": "security"}],
    ],
    "mirrors.no_proxy": ["10.0.0.0/8", "*", "http://x", "m.example.com", "fe80::1%eth0"],
    "mirrors.apt_proxy": ["p:1", "http://u:p@h:1", "http://h:1/x"],
    "secrets.t": [
        {},
        {"env": "SLIPWAY_A", "file": "b"},
        "hunter2",
        {"env": 5},
        {"env": "AWS_SECRET_ACCESS_KEY"},
        {"env": "slipway_token"},
        {"env": "SLIPWAY_A\n"},
    ],
    "service.port": [0, 65536],
    "service.ipv6": ["yes", 1, "::"],
    "service.memory_max": [8, "8", "8GB", "0B", "1KiB", "255MiB", "1025TiB", "infinity", "50%"],
    "service.state_max": [8, "8GB", "0B", "4KiB", "9GiB"],
    "service.tmp_max": [8, "8GB", "0B", "4KiB", "9GiB"],
    "service.tasks_max": [15],
    "service.engine": ["torch"],
    "service.vllm_args": ["--x", [1], ["--stream-interval", "4"], ["--uds=/x"], ["--seed=x"]],
    "service.threads": [0, 257],
    "service.device": ["tpu"],
    "service.precision": ["int8"],
    "service.max_batch_requests": [0, 1025],
    "service.max_wait": [5],
    "service.max_queue_requests": [0],
    "service.request_timeout": ["0s"],
    "service.start_timeout": ["0s", "900ms", "7201s", "infinity"],
    "service.watchdog": ["0s", "900ms"],
    "service.cors_origins": ["*", [1]],
    "service.api_tokens": [["nobody"], "t"],
    "service.tool_parser": ["yaml", True],
    "signing.identity": ["a b", "a,b", 5],
    "signing.key": [5],
    "signing.allowed_signers": [None],
    "storage.root": [
        5, "data", "/", "/data/", "/data/../etc", "/data dir", "/data\nx", "~/data", "/etc/x",
        "/tmp/x", "/var/tmp/x", "/run", "/opt/slipway", "/opt/slipway/data", "/var/lib/slipway/x",
        "/-x", "//x",
    ],
    "release.mode": ["in_place"],
    "release.canary.share_pct": [0, 51, "10%"],
    "release.canary.duration": [60, "0s", "601s"],
    "release.canary.give_up_after": ["59s"],
    "release.canary.min_requests": [0, "lots", 1.5],
    "release.canary.interval": ["0s"],
    "release.waves": [[], [0], ["0%"], ["101%"], ["half"], [True], "100%", [1, 1], [3, 2],
                      ["50%", 9, "50%"], ["100%", 1, "50%"]],
    "release.gates.http_request_error_rate.max": [0.05, "101%", "5"],
    "release.gates.http_request_error_rate.min_requests": [0],
    "release.gates.http_request_error_rate.action": ["ignore"],
    "release.gates.runtime_restarts.max": [-1],
    "release.gates.runtime_restarts.within": ["0s"],
    "release.gates.runtime_restarts.action": ["stop"],
    "release.drain_timeout": ["0s", "7201s"],
    "release.lease_ttl": ["0s", "999ms", "3601s", "365d"],
    "release.keep": [1],
    "release.hooks": [
        "hooks/x",
        [{"when": "before", "phase": "promote", "run": "hooks/x"}],
        [{"when": "before", "phase": "promote", "run": []}],
        [{"when": "before", "phase": "promote", "run": ["bin/x"]}],
        [{"when": "before", "phase": "promote", "run": ["hooks/../bin/x"]}],
        [{"when": "before", "phase": "promote", "run": ["/hooks/x"]}],
        [{"when": "before", "phase": "promote", "run": ["hooks/x", "a\nb"]}],
        [{"when": "before", "phase": "promote", "run": ["hooks/x"], "timeout": "0s"}],
        [{"when": "before", "phase": "pause", "run": ["hooks/x"]}],
        [{"when": "around", "phase": "promote", "run": ["hooks/x"]}],
        *([{"when": "before", "phase": p, "run": ["hooks/x"]}]
          for p in ("revert", "rollback", "abort")),
    ],
    "release.notify": [
        "https://h/x",
        [{"webhook": "http://h/x"}],
        [{"webhook": "https://u:p@h/x"}],
        [{"webhook": "https://h/x?key=1"}],
        [{"webhook": "nobody"}],
        [{"webhook": "https://h/x", "send": "never"}],
        [{"webhook": "https://h/x", "headers": [{"name": "Host", "secret": "t"}]}],
        [{"webhook": "https://h/x", "headers": [{"name": "A\r\nB", "secret": "t"}]}],
        [{"webhook": "https://h/x", "headers": [{"name": "A", "secret": "nobody"}]}],
    ],
    "state": [
        "etcd",
        {"kind": "consul"},
        {"kind": "etcd"},
        {"kind": "etcd", "endpoints": []},
        {"endpoints": ["https://h:2379"]},
        {"ca": "x"},
        {"kind": "etcd", "endpoints": ["http://h:2379"]},
        {"kind": "etcd", "endpoints": ["https://h"]},
        {"kind": "etcd", "endpoints": ["https://u:p@h:2379"]},
        {"kind": "etcd", "endpoints": ["https://h:2379/x"]},
        {"kind": "etcd", "endpoints": ["https://h:2379"], "cert": "x"},
        {"kind": "etcd", "endpoints": ["https://h:2379"], "key": "x"},
        {"kind": "etcd", "endpoints": ["https://h:2379"], "user": "x"},
        {"kind": "etcd", "endpoints": ["https://h:2379"], "user": "x", "password": "nobody"},
        {"kind": "etcd", "endpoints": ["https://h:2379"], "prefix": "a/../b"},
        {"kind": "etcd", "endpoints": ["https://h:2379"], "prefix": ""},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [pytest.param(p, v, id=f"{p}={v!r}") for p, values in WRONG_VALUES.items() for v in values],
)
def test_every_rule_refuses_a_wrong_value_in_the_file(tmp_path, path, value):
    """
    The error names the wrong key, or the mapping whose keys contradict each other.
    """
    error = refusal(tmp_path, {path: value})

    blamed = str(error)
    assert path in blamed or path.rpartition(".")[0] + ": " in blamed
    assert "inventories/test.yml" in error.what


@pytest.mark.parametrize("path", ["row", "hosts", "signing", "signing.key", "hosts.n1.address"])
def test_a_missing_required_key_is_refused(tmp_path, path):
    """
    Keys without a default are required.
    """
    data = fleet_data()
    *parents, last = path.split(".")
    place = data
    for part in parents:
        place = place[part]
    del place[last]

    error = refusal(tmp_path, text=yaml.safe_dump(data))

    assert f"{path}: is required, and missing" in error.what


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("realease", "release"),
        ("ssh.prot", "port"),
        ("hosts.n1.adress", "address"),
        ("groups.a.host", "hosts"),
        ("secrets.t.fil", "file"),
        ("signing.identty", "identity"),
        ("release.gates.http_request_error_rate.maxx", "max"),
        ("release.canary.share", "share_pct"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(tmp_path, path, near):
    """
    A mistyped key is an error at any depth.
    """
    assert f"{path}: unknown key; did you mean {near}?" in str(refusal(tmp_path, {path: 1}))


def test_hooks_are_no_part_of_the_policy(tmp_path):
    """
    The policy goes to hosts and comes back from them; hooks run on the operator's machine.
    """
    hook = {"when": "after", "phase": "rollback", "run": ["hooks/x", "--now"], "timeout": "5s"}
    notify = [{"webhook": "https://h.example.com/x"}]
    fleet = make_fleet(tmp_path, {"release": {"keep": 4, "hooks": [hook], "notify": notify}})

    assert type(fleet.release) is ReleasePolicy
    assert fleet.release == ReleasePolicy(keep=4)
    [loaded] = fleet.hooks
    assert (loaded.run, loaded.timeout) == (("hooks/x", "--now"), 5.0)
    assert loaded.phase is Phase.ROLLBACK
    assert [webhook.secret for webhook in fleet.notify] == [None]


def test_the_state_may_live_in_etcd(tmp_path):
    """
    Relative paths start from the repository; a tunnel on this machine needs no TLS.
    """
    secrets = {"pw": {"env": "SLIPWAY_PW"}}
    state = {
        "kind": "etcd", "endpoints": ["https://e-1:2379", "http://127.0.0.1:2379"], "ca": "ca.crt",
        "user": "slipway", "password": "pw", "prefix": "/a/b",
    }  # fmt: skip
    fleet = make_fleet(tmp_path, {"state": state, "secrets": secrets})

    assert fleet.state.ca == tmp_path / "ca.crt"
    assert fleet.state.cert is None
    assert make_fleet(tmp_path).state.kind == "hosts"


def test_a_hook_before_a_way_back_is_refused_with_the_reason(tmp_path):
    """
    The key and what to write in its place.
    """
    hook = {"when": "before", "phase": "rollback", "run": ["hooks/x"]}
    assert (
        "release.hooks[0]: rollback is a way back, which nothing may delay: use when: after"
        in str(refusal(tmp_path, {"release.hooks": [hook]}))
    )


def test_values_under_secrets_are_not_printed(tmp_path):
    """
    A secret written by mistake where its name belongs does not reach a terminal or a log.
    """
    for value in (
        "hunter2",
        {"value": "hunter2"},
        {"env": ["hunter2"]},
        {"env": 1, "x": "hunter2"},
    ):
        assert "hunter2" not in str(refusal(tmp_path, {"secrets.t": value}))


def test_two_groups_with_different_values_for_a_host_are_refused(tmp_path):
    """
    The order of groups never decides.
    """
    groups = {
        "a": {"hosts": ["n1"], "row": "r1", "vars": {"x": 1}},
        "b": {"hosts": ["n1"], "row": "r2", "vars": {"x": True}},
    }

    why = refusal(tmp_path, {"groups": groups}).why

    assert 'groups.b.row: is "r2", but groups.a.row is "r1", and n1 is in both' in why
    assert "groups.b.vars.x: is true, but groups.a.vars.x is 1, and n1 is in both" in why


def test_a_hosts_own_value_resolves_a_conflict_of_its_groups(tmp_path):
    """
    For `row` and for each variable.
    """
    groups = {
        "a": {"hosts": ["n1"], "row": "r1", "vars": {"x": 1}},
        "b": {"hosts": ["n1"], "row": "r2", "vars": {"x": 2}},
    }
    own = {"groups": groups, "hosts.n1.row": "r3", "hosts.n1.vars": {"x": 3}}

    host = make_fleet(tmp_path, own).host("n1")

    assert (host.row, host.vars) == ("r3", {"x": 3})


def test_one_machine_under_two_names_is_refused(tmp_path):
    """
    Another SSH port or jump host makes it another machine.
    """
    same = {"hosts.n2.address": "192.0.2.1"}

    assert "hosts.n2.address: hosts.n1 has the same address 192.0.2.1 and SSH port 22" in str(
        refusal(tmp_path, same)
    )
    assert make_fleet(tmp_path, same | {"hosts.n2.ssh": {"port": 23}})
    assert make_fleet(tmp_path, same | {"hosts.n2.ssh": {"jump": "j@h"}})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::1", "2001:0DB8:0:0:0:0:0:1"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("fe80::1%eth0", "FE80:0::1%eth0"),
        ("gpu.example.com", "GPU.example.com."),
    ],
)
def test_one_machine_in_two_spellings_is_refused(tmp_path, one, other):
    """
    Two slots of one machine would count as two hosts of the fleet.
    """
    hosts = {"hosts.n1.address": one, "hosts.n2.address": other}
    assert "hosts.n1 has the same address" in str(refusal(tmp_path, hosts))
    jumps = [f"j@[{text}]" if ":" in text else f"j@{text}" for text in (one, other)]
    ways = {f"hosts.n{n}.ssh": {"jump": jump} for n, jump in enumerate(jumps, 1)}
    same = {"hosts.n1.address": "192.0.2.7", "hosts.n2.address": "192.0.2.7"}
    assert "hosts.n1 has the same address" in str(refusal(tmp_path, same | ways))
    assert make_fleet(tmp_path, {"hosts.n1.address": "fe80::1%a", "hosts.n2.address": "fe80::1%b"})


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1"])
def test_an_address_of_no_single_host_is_refused(tmp_path, address):
    """
    A connection to 0.0.0.0 reaches the machine that runs `inv`.
    """
    assert "hosts.n1.address: should be the IP address of one host" in str(
        refusal(tmp_path, {"hosts.n1.address": address})
    )


def test_rows_are_checked_against_the_matrix(tmp_path):
    """
    Of the fleet, of groups and of hosts; the error suggests the most similar row.
    """
    rows = {"row": "torch-2.3", "groups.a": {"hosts": ["n1"], "row": "x"}, "hosts.n2.row": "y"}

    why = refusal(tmp_path, rows, known_rows={"torch-2.3-cu121": True, "torch-2.0-cu118": True}).why

    assert (
        "row: no row of the version matrix is named 'torch-2.3'; did you mean torch-2.3-cu121"
        in why
    )
    assert "groups.a.row" in why
    assert "hosts.n2.row" in why
    assert make_fleet(tmp_path, known_rows={"torch-2.3-cu121": True})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "should be a mapping"),
        ("just text\n", "should be a mapping"),
        ("row: [1\nhosts: 2\n", "not YAML"),
        ("row: 1\n\thosts: 2\n", "column 1"),
        ("row: *nowhere\n", "not YAML: found undefined alias"),
        ("row: 1\n---\nrow: 2\n", "not YAML: but found another document"),
        ("row: \x00\n", "line 1 of"),
        ("row: 1\nssh: \x7f\n", "the character U+007F, which YAML does not allow"),
        ('row: x\nssh: {user: "\\UFFFFFFFF"}\n', "an escape is out of range"),
        ('row: "\\U00110000"\n', "an escape is out of range"),
        pytest.param(f"%YAML 1.{'9' * 5000}\n---\nrow: 1\n", "a number or", id="version"),
        ("ssh: !!set {port}\n", "ssh: the tag 'tag:yaml.org,2002:set' is not allowed"),
        ("hosts: !!omap [n1: 1]\n", "hosts: the tag"),
        ("groups: {a: {hosts: !!python/tuple [n1]}}\n", "groups.a.hosts: the tag"),
        ("gpu: {mig: true}\n", "gpu.mig: should be false, got true"),
        ("row: 1\nrow: 2\n", "row: duplicate key, on line 1 and on line 2"),
        ("ssh: {port: 1, port: 2}\n", "ssh.port: duplicate key"),
        ("1: 2\n", "1: the key should be text"),
        ("row: !secret x\n", "row: the tag '!secret' is not allowed"),
        ("ssh: {port: !!null 2222}\n", "ssh.port: the tag 'tag:yaml.org,2002:null' is not allowed"),
        ("ssh: {port: !!float 22}\n", "ssh.port: the tag"),
        ("ssh: {client_config: !!bool maybe}\n", "ssh.client_config: the tag"),
        ("row: !!python/name:os.system x\n", "is not allowed"),
        ("hosts: &a {n1: *a}\n", "hosts.n1: contains itself"),
        pytest.param("row: " + "[" * 3000, "nested too deeply", id="deep"),
        (b"row: \xff\n", "is not UTF-8 text"),
    ],
)
def test_a_text_that_is_no_fleet_file_is_refused(tmp_path, text, problem):
    """
    With an InventoryError, for any content.
    """
    assert problem in str(refusal(tmp_path, text=text))


def test_aliases_of_aliases_are_bounded(tmp_path):
    """
    A short text must not expand to more entries than fit into memory.
    """
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]

    assert "more than 100000 entries" in str(refusal(tmp_path, text="\n".join(lines)))


def test_a_merged_mapping_may_be_overridden(tmp_path):
    """
    With `<<`, YAML's way to share keys, a key of the mapping overrides a merged one.
    """
    text = yaml.safe_dump(fleet_data())
    text += "groups:\n  a: &a {hosts: [n1], vars: {x: 1}}\n  b: {<<: *a, hosts: [n2]}\n"

    fleet = make_fleet(tmp_path, text=text)

    assert [host.groups for host in fleet.hosts] == [("a",), ("b",)]
    assert fleet.host("n2").vars == {"x": 1}


def test_a_date_in_a_variable_is_text(tmp_path):
    """
    YAML would read it as a date, a type that no key has.
    """
    text = yaml.safe_dump(fleet_data()).replace(
        "192.0.2.1\n", "192.0.2.1\n    vars: {d: 2026-01-01}\n"
    )

    assert make_fleet(tmp_path, text=text).host("n1").vars["d"] == "2026-01-01"


def test_an_unreadable_file_is_an_error_with_the_systems_reason(tmp_path, monkeypatch):
    """
    Under `why`.
    """
    write_fleet(tmp_path)

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InventoryError) as caught:
        load_fleet("test", root=tmp_path)
    assert caught.value.why == "Permission denied"


@pytest.mark.parametrize("text", ["0022", "22:22", "0x16", "0o17", "2_2", "1e3", "+22"])
def test_a_number_is_decimal(tmp_path, text):
    """
    YAML 1.1 would read 0022 as 18 and 22:22 as 1342.
    """
    written = yaml.safe_dump(fleet_data()) + f"ssh: {{port: {text}}}\n"

    error = str(refusal(tmp_path, text=written))

    assert f'ssh.port: should be a whole number, got "{text}"; write numbers in decimal' in error


@pytest.mark.parametrize("text", ["22:10", "0022", "no", "off", "y", "1_000", "1e3", ".inf", "0x1"])
def test_what_only_some_versions_of_yaml_read_otherwise_is_text(tmp_path, text):
    """
    The rack 22:10 is no number of seconds, and the country no is not false.
    """
    written = yaml.safe_dump(fleet_data()).replace(
        "192.0.2.1\n", f"192.0.2.1\n    vars: {{rack: {text}}}\n"
    )

    assert make_fleet(tmp_path, text=written).host("n1").vars == {"rack": text}


def test_merges_of_merges_are_bounded(tmp_path):
    """
    `<<` multiplies entries as aliases do.
    """
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]

    assert "more than 100000 entries" in str(refusal(tmp_path, text="\n".join(lines)))


def test_a_mapping_that_merges_itself_is_refused(tmp_path):
    """
    At the key.
    """
    assert "ssh.<<" in str(refusal(tmp_path, text="ssh: &a {<<: *a}\n")).replace('"', "")


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path):
    """
    By its size in characters, and far above it by its size in bytes.
    """
    text = yaml.safe_dump(fleet_data())

    assert "more than 1048576 characters" in str(refusal(tmp_path, text=text + "#" * 2**20))
    assert "more than 4 MiB" in str(refusal(tmp_path, text=text + "#" * 2**23))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding_is_refused(tmp_path, encoding):
    """
    A byte order mark of UTF-8 is accepted.
    """
    text = yaml.safe_dump(fleet_data()) + "# é\n"

    assert make_fleet(tmp_path, text=text.encode("utf-8-sig"))
    refused = str(refusal(tmp_path, text=text.encode(encoding)))
    assert "UTF-8" in refused or "which YAML does not allow" in refused


@pytest.mark.parametrize("device", [{}, {"service.device": "cuda"}])
def test_a_cpu_row_with_the_device_cuda_is_refused(tmp_path, device):
    """
    The default as well; the error names the host, its row and the remedy.
    """
    rows = {"torch-2.13-cpu": False, "torch-2.3-cu121": True}
    changes = {"hosts.n2.row": "torch-2.13-cpu", **device}

    error = str(refusal(tmp_path, changes, known_rows=rows))

    assert "service.device: is cuda" in error
    assert "hosts.n2, torch-2.13-cpu, is for CPUs; set service.device: cpu" in error
    agreeing = {"row": "torch-2.13-cpu", "service.device": "cpu"}
    assert make_fleet(tmp_path, agreeing, known_rows=rows)


def test_a_cuda_row_with_the_device_cpu_is_refused(tmp_path):
    """
    Its hosts would need a driver, and the service would not see the GPU.
    """
    rows = {"torch-2.13-cpu": False, "torch-2.3-cu121": True}
    changes = {"service.device": "cpu", "hosts.n2.row": "torch-2.13-cpu"}

    error = str(refusal(tmp_path, changes, known_rows=rows))

    assert "service.device: is cpu, but the row of hosts.n1, torch-2.3-cu121, is for GPUs" in error
    assert "set service.device: cuda, or a row for CPUs" in error
    assert make_fleet(tmp_path, {"service.device": "cuda"}, known_rows=rows)


def test_a_default_that_does_not_fit_is_named_as_one(tmp_path):
    """
    A limit above memory_max would never be reached.
    """
    error = str(refusal(tmp_path, {"service.memory_max": "512MiB"}))

    assert "state_max is 1.0GiB (the default), and counts against memory_max" in error
    assert "which is 512.0MiB: set state_max to less" in error
    limits = {"memory_max": "512MiB", "state_max": "64MiB", "tmp_max": "512MiB"}
    assert make_fleet(tmp_path, {"service": limits})


def test_a_line_of_sources_list_is_refused_with_the_structure(tmp_path):
    """
    The form of earlier versions, in which trusted=yes could be said.
    """
    error = str(refusal(tmp_path, {"mirrors.apt": "deb [trusted=yes] http://x/ bookworm main"}))

    assert "mirrors.apt: should be a list of sources with the keys uris and distribution" in error


@pytest.mark.parametrize("name", ["x\ny.yml", "a b.yml", "x" * 5000 + ".yml", "~nobody/x.yml"])
def test_a_strange_path_of_a_fleet_file_is_one_error(tmp_path, name):
    """
    The file's name becomes that of the fleet.
    """
    if len(name) < 100 and "~" not in name:
        (tmp_path / name).write_text(yaml.safe_dump(fleet_data()))
    with pytest.raises(InventoryError) as caught:
        load_fleet(name, root=tmp_path)
    assert "\n" not in caught.value.what
    assert len(caught.value.what) < 400


def test_a_file_that_ends_in_yaml_is_named(tmp_path):
    with pytest.raises(InventoryError) as caught:
        load_fleet(str(tmp_path / "x.yaml"), root=tmp_path)
    assert (caught.value.why, caught.value.fix) == (
        "the name of a fleet file ends in .yml",
        "rename the file",
    )


def test_a_pipe_is_no_fleet_file(tmp_path):
    """
    It would be waited for without end.
    """
    os.mkfifo(tmp_path / "x.yml")
    with pytest.raises(InventoryError, match="no such fleet file"):
        load_fleet("x.yml", root=tmp_path)
