from deploy.host import layout


def test_the_runtime_user_cannot_log_in(root):
    """
    The runtime's user has no shell, no home, no password, and no group but its own.
    """
    fields = root.check_output(f"getent passwd {layout.USER}").split(":")
    assert fields[5:] == ["/nonexistent", "/usr/sbin/nologin"]
    assert root.check_output(f"id -Gn {layout.USER}") == layout.USER
    assert root.check_output(f"getent shadow {layout.USER}").split(":")[1] in {"!", "*", "!*"}


def test_the_build_user_cannot_log_in(root):
    """
    It has no shell, no home, no password, and no group but its own.
    """
    fields = root.check_output(f"getent passwd {layout.BUILD_USER}").split(":")
    assert fields[5:] == ["/nonexistent", "/usr/sbin/nologin"]
    assert root.check_output(f"id -Gn {layout.BUILD_USER}") == layout.BUILD_USER
    shadow = root.check_output(f"getent shadow {layout.BUILD_USER}")
    assert shadow.split(":")[1] in {"!", "*", "!*"}
