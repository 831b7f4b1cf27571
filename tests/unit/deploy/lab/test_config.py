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


def test_the_environment_names_a_lab_and_a_lab_its_environment():
    """
    A supervisor, a test and a shell that are given these variables mean the same lab.
    """
    config = make_config(bridge="other", prefix="10.9.8")

    assert LabConfig.from_env(config.as_env()) == config


def test_the_default_lab_lies_in_the_users_cache():
    """
    Of XDG_CACHE_HOME where it is set; the bases lie there too.
    """
    plain = LabConfig.from_env({"HOME": "/home/ada"})
    moved = LabConfig.from_env({"HOME": "/home/ada", "XDG_CACHE_HOME": "/big/cache"})

    assert plain.directory == plain.bases == Path("/home/ada/.cache/slipway/lab")
    assert moved.directory == Path("/big/cache/slipway/lab")


def test_the_fleet_of_the_lab_is_the_default_lab():
    """
    inventories/lab.yml has the addresses, keys and signer that `lab.up` makes.
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


def test_names_of_links_fit_the_kernel():
    """
    Also with the longest bridge and the last host: 15 characters.
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
    ("change", "said"),
    [
        ({"bridge": "much-too-long"}, "can't be called"),
        ({"bridge": "x; reboot"}, "can't be called"),
        ({"prefix": "10.78"}, "network can't be"),
        ({"prefix": "10.78.256"}, "network can't be"),
        ({"directory": Path("/with space")}, "folder can't be"),
        ({"directory": Path("/a:b")}, "folder can't be"),
        ({"directory": Path("relative")}, "folder can't be"),
    ],
)
def test_what_the_kernel_would_not_take_is_refused(change, said):
    """
    Before anything is made, with the variable to change.
    """
    with pytest.raises(LabError, match=said) as raised:
        make_config(**change)

    assert "SLIPWAY_LAB_" in raised.value.fix


@pytest.mark.parametrize("name", ["n0", "n", "m1", "n100", "gpu-1", "n1 ", "../n1"])
def test_only_lab_hosts_have_a_number(name):
    with pytest.raises(LabError, match="no lab host"):
        number(name)


@pytest.mark.parametrize("count", [0, -1, 33])
def test_a_lab_has_from_1_to_32_hosts(count):
    with pytest.raises(LabError, match=f"a lab of {count} hosts"):
        make_config().names(count)
