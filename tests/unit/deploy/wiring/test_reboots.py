from deploy.wiring.reboots import reboot_policy
from tests.unit.deploy.inventory.builders import make_fleet


def test_the_limits_of_a_fleet_hold_for_its_reboots(tmp_path):
    """
    The facts of a host may take as long as in provisioning.
    """
    changes = {
        "ssh.command_timeout": "90s",
        "release.drain_timeout": "70s",
        "service.start_timeout": "200s",
    }
    policy = reboot_policy(make_fleet(tmp_path, changes), "1", "", interrupts=False, check=False)
    assert (policy.facts_s, policy.drain_s, policy.start_s) == (90.0, 70.0, 200.0)
