import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.verify.ssh_config import ssh_config
from tests.unit.deploy.inventory.builders import make_fleet

CONTROL = Path("/tmp/c")


def effective_options(tmp_path, config, host):
    """
    Return OpenSSH's effective options of *config* for *host*.
    """
    if shutil.which("ssh") is None:
        pytest.skip("ssh is not installed here")
    path = tmp_path / "ssh_config"
    path.write_text(config)
    done = subprocess.run(
        ["ssh", "-G", "-F", str(path), host], capture_output=True, text=True, check=True
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def test_host_keys_are_checked_strictly(tmp_path):
    """
    Verification accepts no unknown key, never prompts, and reads the fleet's known_hosts.
    """
    fleet = make_fleet(tmp_path, {"ssh": {"known_hosts": str(tmp_path / "known hosts")}})
    options = effective_options(tmp_path, ssh_config(fleet, CONTROL), "n1")
    assert options["stricthostkeychecking"] == "true"
    assert options["batchmode"] == "yes"
    assert options["userknownhostsfile"] == str(tmp_path / "known hosts")
    assert options["hostname"] == "192.0.2.1"
    assert options["hostkeyalias"] == "192.0.2.1"


def test_one_login_serves_all_commands(tmp_path):
    """
    Commands share a connection, and a silent host ends it.
    """
    options = effective_options(tmp_path, ssh_config(make_fleet(tmp_path), CONTROL), "n2")
    assert options["controlmaster"] == "auto"
    assert options["controlpath"].startswith("/tmp/c/")
    assert (options["serveraliveinterval"], options["serveralivecountmax"]) == ("5", "3")


def test_a_jump_host_is_checked_like_the_others(tmp_path):
    """
    The connection uses the fleet's jump host, with its user, port, key and strict checking.
    """
    fleet = make_fleet(
        tmp_path,
        {"ssh": {"jump": "ops@bastion.example.com:2222", "key": "keys/id", "port": 2200}},
    )
    config = ssh_config(fleet, CONTROL)
    host = effective_options(tmp_path, config, "n1")
    assert host["hostkeyalias"] == "[192.0.2.1]:2200"
    jump = effective_options(tmp_path, config, host["proxyjump"])
    assert (jump["hostname"], jump["user"], jump["port"]) == ("bastion.example.com", "ops", "2222")
    assert jump["stricthostkeychecking"] == "true"
    assert jump["identityfile"] == host["identityfile"]
