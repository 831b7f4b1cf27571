from deploy.host import layout
from deploy.host.layout import Layout

NAMES = {name: value for name, value in vars(layout).items() if name.isupper()}


def test_every_path_of_the_layout_has_a_constant():
    """
    The host program and the controller's templates use the same paths.
    """
    paths = {name: value for name, value in NAMES.items() if str(value).startswith("/")}
    assert paths.pop("PYTHON") == layout.HOST_COMMAND[0]  # runs the host program: no file of it

    assert len(paths) > 10
    assert {name: str(getattr(Layout(), name.lower())) for name in paths} == paths
    assert str(Layout().runtime_socket("blue")) == layout.runtime_socket("blue")


def test_a_root_prefixes_every_path(tmp_path):
    """
    No path of a test's host is outside of its directory.
    """
    layout_under_root = Layout(str(tmp_path))

    values = [value for name, value in vars(layout_under_root).items() if name != "root"]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]

    assert len(paths) > 20
    assert all(tmp_path in path.parents for path in paths)
