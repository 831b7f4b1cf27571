from deploy import layout
from deploy.host import layout as on_host
from deploy.host.layout import Layout

NAMES = {name: value for name, value in vars(layout).items() if name.isupper()}


def test_host_and_controller_agree_on_every_path():
    """
    Each path of deploy/layout.py is the same on the host.
    """
    paths = {name: value for name, value in NAMES.items() if str(value).startswith("/")}

    assert len(paths) > 10
    assert {name: str(getattr(Layout(), name.lower())) for name in paths} == paths


def test_host_and_controller_agree_on_every_name():
    """
    Slots, units, user and backend are the same on the host.
    """
    names = {n: v for n, v in NAMES.items() if not str(v).startswith("/") and n not in ("USER",)}

    assert {name: getattr(on_host, name) for name in names} == names
    assert on_host.unit("blue") == layout.unit("blue")
    assert str(Layout().runtime_socket("blue")) == layout.runtime_socket("blue")


def test_a_root_stands_in_front_of_every_path(tmp_path):
    """
    Nothing of a test's host lies outside of its directory.
    """
    made = Layout(str(tmp_path))

    paths = [value for name, value in vars(made).items() if name != "root"]

    assert all(tmp_path in path.parents for path in paths)
