from deploy.host import layout


def test_the_runtime_user_cannot_log_in(root):
    """
    The runtime's user has no shell, no home, no password, and no group but its own.
    """
    fields = root.check_output(f"getent passwd {layout.USER}").split(":")
    assert fields[5:] == ["/nonexistent", "/usr/sbin/nologin"]
    assert root.check_output(f"id -Gn {layout.USER}") == layout.USER
    assert root.check_output(f"getent shadow {layout.USER}").split(":")[1] in {"!", "*", "!*"}
