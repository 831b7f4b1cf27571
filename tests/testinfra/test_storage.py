from deploy.host import layout

PUBLIC = [
    *(layout.OPT, layout.BIN, layout.WHEELHOUSE, layout.VENVS, layout.RELEASES),
    *(layout.STATE, layout.MODELS, f"{layout.MODELS}/blobs", layout.SLOT_LINKS, layout.RUN),
]


def stat(host, *paths):
    """
    Return {path: "owner:group mode"} in one command.
    """
    shown = host.check_output("stat -c '%%n %%U:%%G %%a' " + " ".join(["%s"] * len(paths)), *paths)
    return dict(line.split(" ", 1) for line in shown.splitlines())


def test_directories_belong_to_root(root):
    """
    Shared directories are owned by root, and readable by the runtime.
    """
    assert stat(root, *PUBLIC) == dict.fromkeys(PUBLIC, "root:root 755")


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
    The runtime's user has no way to change code, weights, links or configuration.
    """
    shared = [layout.OPT, layout.ETC, layout.STATE]
    where = " ".join(shared)
    # Control: the user lists the directories, and its search finds /tmp, which all may write.
    control = f"ls -d {where} && find /tmp -maxdepth 0 -writable"
    # Files and directories; the mode of a symlink has no meaning.
    search = f"find {where} -maxdepth 3 ! -type l -writable"
    shown = root.run(f"runuser -u {layout.USER} -- sh -c '{control} && {search}' 2>/dev/null")
    assert sorted(shown.stdout.split()) == sorted([*shared, "/tmp"])
