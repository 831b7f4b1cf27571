from pathlib import Path

import pytest
import yaml

from deploy.errors import LabError
from deploy.inventory.schema import FleetFile
from deploy.lab.config import LabConfig, number

ROOT = Path(__file__).parents[4]


def make_config(**changes: object) -> LabConfig:
    values = {"directory": Path("/lab"), "bases": Path("/bases")}
    return LabConfig(**(values | changes))  # type: ignore[arg-type]


def test_from_env_reads_back_what_as_env_writes():
    """
    All processes with these variables work on the same lab.
    """
    config = make_config(bridge="other", prefix="10.9.8", suite="trixie")

    assert LabConfig.from_env(config.as_env()) == config


def test_the_default_lab_lies_in_the_users_cache():
    """
    In XDG_CACHE_HOME if it is set, with the base trees.
    """
    plain = LabConfig.from_env({"HOME": "/home/ada"})
    moved = LabConfig.from_env({"HOME": "/home/ada", "XDG_CACHE_HOME": "/big/cache"})

    assert plain.directory == plain.bases == Path("/home/ada/.cache/slipway/lab")
    assert moved.directory == Path("/big/cache/slipway/lab")


def test_the_fleet_of_the_lab_is_the_default_lab():
    """
    inventories/lab.yml has the addresses, keys and signer of the default lab.
    """
    config = LabConfig.from_env({"HOME": str(Path.home())})
    text = (ROOT / "inventories/lab.yml").read_text()
    fleet = FleetFile.model_validate(yaml.safe_load(text))

    assert {n: h.address for n, h in fleet.hosts.items()} == {
        name: config.address(name) for name in config.names(4)
    }
    assert fleet.ssh.key == config.keys / "id_ed25519"
    assert fleet.ssh.known_hosts == config.keys / "known_hosts"
    assert fleet.signing.key == config.keys / "signing_ed25519"
    assert fleet.signing.allowed_signers == config.keys / "allowed_signers"


def test_the_fleet_of_the_demo_is_the_lab_with_tls():
    """
    Nothing else of inventories/demo.yml differs from lab.yml.
    """
    lab, demo = (
        yaml.safe_load((ROOT / f"inventories/{name}.yml").read_text()) for name in ("lab", "demo")
    )
    tls = demo["service"].pop("tls")

    assert demo == lab
    assert (tls["kind"], sorted(tls)) == ("internal", ["authority", "kind"])
    assert "/.cache/slipway/" in tls["authority"], "nothing of the user's own"


def test_names_of_links_fit_the_kernel():
    """
    At most 15 characters, also with the longest bridge name and the last host.
    """
    config = make_config(bridge="abcdef")

    assert max(len(config.link(name)) for name in config.names(32)) <= 15


def test_two_labs_share_no_name_in_the_kernel():
    """
    Tables, cgroups, links and units all carry the bridge's name.
    """
    one, other = make_config(bridge="one"), make_config(bridge="other")

    for name in ("tag", "table", "link_prefix"):
        assert getattr(one, name) != getattr(other, name)
    assert one.link("n1") != other.link("n1")
    assert one.unit("n1") != other.unit("n1")


@pytest.mark.parametrize(
    ("change", "variable"),
    [
        ({"bridge": "much-too-long"}, "SLIPWAY_LAB_BRIDGE"),
        ({"bridge": "x; reboot"}, "SLIPWAY_LAB_BRIDGE"),
        ({"prefix": "10.78"}, "SLIPWAY_LAB_SUBNET"),
        ({"prefix": "10.78.256"}, "SLIPWAY_LAB_SUBNET"),
        ({"suite": "sid"}, "SLIPWAY_LAB_SUITE"),
        ({"directory": Path("/with space")}, "SLIPWAY_LAB_DIR"),
        ({"directory": Path("/a:b")}, "SLIPWAY_LAB_DIR"),
        ({"directory": Path("relative")}, "SLIPWAY_LAB_DIR"),
    ],
)
def test_settings_that_the_kernel_would_reject_are_refused(change, variable):
    """
    Before anything is created.  The error names the variable and its value.
    """
    [value] = change.values()
    with pytest.raises(LabError) as raised:
        make_config(**change)

    assert raised.value.what.startswith(f"{variable}: {str(value)!r} ")
    assert variable in raised.value.fix


@pytest.mark.parametrize("name", ["n0", "n", "m1", "n100", "gpu-1", "n1 ", "../n1"])
def test_only_lab_hosts_have_a_number(name):
    with pytest.raises(LabError, match="is not the name of a lab host"):
        number(name)


@pytest.mark.parametrize("count", [0, -1, 33])
def test_a_lab_has_from_1_to_32_hosts(count):
    with pytest.raises(LabError, match=f"cannot have {count} hosts"):
        make_config().names(count)
