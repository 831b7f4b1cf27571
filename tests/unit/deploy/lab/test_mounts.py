from pathlib import Path

from deploy.lab import mounts
from deploy.lab.mounts import mount_image, mounted_below

MOUNTINFO = """\
20 1 254:0 / / rw - ext4 /dev/vda rw
40 20 0:50 / /lab/hosts/n1/root rw - overlay tag rw
41 40 0:51 / /lab/hosts/n1/root/proc rw - proc proc rw
42 20 0:52 / /lab-spare/hosts/n1/root rw - overlay tag rw
43 20 0:53 / /lab/hosts/with\\040space rw - tmpfs tmpfs rw
"""


def test_the_innermost_mount_comes_first():
    """
    In this order, no unmount fails because of another mount inside.
    """
    assert mounted_below(Path("/lab/hosts/n1"), MOUNTINFO) == (
        Path("/lab/hosts/n1/root/proc"),
        Path("/lab/hosts/n1/root"),
    )


def test_a_folder_with_the_same_prefix_is_another_folder():
    """
    /lab-spare is not below /lab.
    """
    assert all(p.is_relative_to("/lab") for p in mounted_below(Path("/lab"), MOUNTINFO))
    assert len(mounted_below(Path("/lab"), MOUNTINFO)) == 3


def test_escaped_names_are_decoded():
    """
    The kernel writes a space as \\040.
    """
    assert Path("/lab/hosts/with space") in mounted_below(Path("/lab"), MOUNTINFO)


def test_an_image_is_mounted_once_and_only_where_there_is_one(tmp_path, monkeypatch):
    """
    A host without an image shares the file system of the lab's folder.
    """
    image, at = tmp_path / "n1.img", tmp_path / "n1"
    ran, mounted = [], []
    monkeypatch.setattr(mounts, "run", lambda argv, **_: ran.append(argv))
    monkeypatch.setattr(mounts, "mounted_below", lambda _: mounted)

    mount_image(image, at=at)
    assert ran == []

    image.touch()
    mount_image(image, at=at)
    assert ran == [["mount", "-o", "loop,noatime", image, at]]

    mounted.append(at)
    mount_image(image, at=at)
    assert len(ran) == 1
