import pytest

from deploy.host import layout

PUBLIC = [layout.OPT, layout.BIN, layout.STATE, layout.SLOT_LINKS, layout.RUN]
OF_RELEASES = [layout.VENVS, layout.RELEASES, layout.MODELS, f"{layout.MODELS}/blobs"]


def stat(host, *paths):
    """
    Return {path: "owner:group mode"} in one command.
    """
    shown = host.check_output("stat -c '%%n %%U:%%G %%a' " + " ".join(["%s"] * len(paths)), *paths)
    return dict(line.split(" ", 1) for line in shown.splitlines())


@pytest.mark.parametrize(("path", "name"), [(layout.OPT, "opt"), (layout.STATE, "lib")])
def test_its_directories_lie_on_the_data_disk(root, expected, path, name):
    """
    Each is the directory of storage.root that it is bound to, also after a reboot.
    """
    if expected["storage_root"] is None:
        pytest.skip("the fleet file has no storage.root")
    shown = root.check_output("stat -c '%%d %%i' %s %s/%s", path, expected["storage_root"], name)
    assert len(set(shown.splitlines())) == 1
    unit = root.check_output("systemd-escape --path --suffix=mount %s", path)
    assert root.check_output("systemctl is-enabled %s", unit) == "enabled"


def test_directories_belong_to_root(root):
    """
    Shared directories are owned by root; code and weights are for the runtime's group alone.
    """
    assert stat(root, *PUBLIC) == dict.fromkeys(PUBLIC, "root:root 755")
    closed = dict.fromkeys(OF_RELEASES, f"root:{layout.USER} 750")
    assert stat(root, *OF_RELEASES) == closed
    assert stat(root, layout.WHEELHOUSE)[layout.WHEELHOUSE] == f"root:{layout.BUILD_USER} 750"


def test_what_is_unverified_and_what_is_configured_is_closed(root):
    """
    Only root may read uploads; the configuration is for root and the runtime's group.
    """
    assert stat(root, layout.INCOMING, layout.ETC) == {
        layout.INCOMING: "root:root 700",
        layout.ETC: f"root:{layout.USER} 750",
    }


def test_the_runtime_can_write_nothing_that_is_shared(root):
    """
    The users of the slots have no way to change code, weights, links, configuration or sockets.
    """
    shared = [layout.OPT, layout.ETC, layout.STATE, layout.RUN]
    # Control: the user lists the directories, and the search ends at /tmp, which all may write.
    # From another directory than / find stops before it searches: the user cannot return there.
    where = " ".join(shared)
    search = (
        f"cd / && ls -d {where} && "
        f'find {where} /tmp -maxdepth 3 -path "/tmp/*" -prune -o ! -type l -writable -print'
    )
    # The mode of a symlink has no meaning.
    for slot in layout.SLOTS:
        user = layout.slot_user(slot)
        shown = root.run(f"runuser -u {user} -G {layout.USER} -- sh -c '{search}' 2>/dev/null")
        assert sorted(shown.stdout.split()) == sorted([*shared, "/tmp"]), user
