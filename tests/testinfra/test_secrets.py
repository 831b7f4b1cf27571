import json

from deploy.host import layout
from deploy.host.protocol import SCHEMA


def test_secrets_are_for_root_alone(root):
    """
    Only root may read the environment of the unit.
    """
    shown = root.check_output(f"stat -c '%U:%G %a' {layout.ENVIRONMENT}")
    assert shown == "root:root 600"
    for user in (*(layout.slot_user(slot) for slot in layout.SLOTS), "nobody"):
        # Control: the user can run cat, and reads what all may read.
        assert root.run(f"runuser -u {user} -- cat /etc/passwd").rc == 0, user
        shown = root.run(f"runuser -u {user} -- cat {layout.ENVIRONMENT}")
        assert "Permission denied" in shown.stderr, user
        assert shown.stdout == "", user


def test_no_secret_is_left_over(root):
    """
    No partly written file is left beside the others.
    """
    shown = root.check_output(f"find {layout.ETC} {layout.BIN} -name '.*'")
    assert shown.split() == []


def test_api_keys_are_for_the_runtime_alone(root):
    """
    Their hashes are read by the group of the slots, the host's own token by root.
    """
    wanted = {
        layout.API_KEYS: f"root:{layout.USER} 640",
        layout.HOST_KEY: f"root:{layout.USER} 640",
        layout.HOST_TOKEN: "root:root 600",
    }
    for path, owner in wanted.items():
        if root.file(path).exists:
            assert root.check_output(f"stat -c '%U:%G %a' {path}") == owner


def test_api_keys_are_a_list(root):
    """
    The host program reads them: no edit by hand has broken the file.
    """
    request = json.dumps({"schema": SCHEMA})
    status = f"echo '{request}' | {' '.join(layout.HOST_COMMAND)} status"
    answer = json.loads(root.check_output(status))
    assert answer["result"]["keys_damage"] is None


def test_configuration_is_readable_by_the_runtime(root):
    """
    The runtime reads its configuration and cannot change it.
    """
    shown = root.check_output(f"stat -c '%U:%G %a' {layout.RUNTIME_CONFIG}")
    assert shown == f"root:{layout.USER} 640"
    for slot in layout.SLOTS:
        read = (
            f"runuser -u {layout.slot_user(slot)} -G {layout.USER} -- cat {layout.RUNTIME_CONFIG}"
        )
        assert root.run(read).rc == 0, slot
