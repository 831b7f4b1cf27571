"""
What tasks write on the control machine is for its user alone.

Each test that writes runs with umask 0, so that a mode is right because it was asked for.
"""

import errno
import hashlib
import os
import stat

import pytest

from deploy import private_files
from deploy.bundle import store as stores
from deploy.bundle.sign import sign_bundle
from deploy.cli import boundary, terminal
from deploy.errors import DeployError, hide_passwords
from deploy.lab.models import build as lab_models
from deploy.private_files import (
    check_directory,
    create_output,
    open_private,
    private_directory,
    write_private,
)
from deploy.verify import run as verify_run
from deploy.wheelhouse import ensure_lock
from tests.unit.deploy.bundle.builders import Workshop, make_key
from tests.unit.deploy.wheelhouse.test_fetch import ROW, make_wheel

STRANGER = 12345  # a user id that is neither ours nor root's


@pytest.fixture(autouse=True)
def umask_0():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def place(tmp_path):
    """
    A directory that no other user can write to, as a checkout is.
    """
    path = tmp_path / "checkout"
    path.mkdir(mode=0o755)
    return path


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


def open_to_others(folder):
    """
    Return *folder* and what lies in it, where other users have any right to it.
    """
    return [p for p in (folder, *folder.rglob("*")) if not p.is_symlink() and mode_of(p) & 0o077]


def fetch_wheels(place, cache, monkeypatch):
    index, requirements = place / "index", place / "requirements"
    index.mkdir()
    requirements.mkdir()
    for project, version, lock in (("torch", "9.0+cpu", "torch"), ("small", "1.0", "runtime")):
        digest = hashlib.sha256(make_wheel(index, project, version).read_bytes()).hexdigest()
        (requirements / f"{lock}.lock").write_text(f"{project}=={version} --hash=sha256:{digest}\n")
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", index), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", str(value))
    return ensure_lock(ROW, cache=cache, progress=lambda _: None, requirements=requirements)


def write_everything(place, monkeypatch):
    """
    Have each part that writes below .slipway and the cache do so; return both folders.
    """
    own, cache = place / ".slipway", place / "cache" / "slipway"
    fetch_wheels(place, cache / "wheels", monkeypatch)
    workshop = Workshop(place / "workshop")
    workshop.store = stores.BundleStore(own)
    monkeypatch.setattr(stores, "_take", lambda descriptor, draft: copy(descriptor, draft))
    key, _ = make_key(place / "keys")
    sign_bundle(workshop.build(), key=key)
    monkeypatch.setattr(boundary, "_TRACEBACK", own / "traceback.txt")
    with pytest.raises(SystemExit), boundary.error_boundary(as_json=False):
        raise RuntimeError("a defect")
    models = private_directory(own / "models" / "good-v1")
    lab_models._write_json(models / "config.json", {})
    return own, cache


def copy(descriptor, draft):
    draft.unlink()  # a hard link has the mode of the model that the operator named
    return stores._copy(descriptor, draft)


def test_everything_that_tasks_write_is_private(place, monkeypatch):
    """
    Bundles, blobs, signatures, models, wheels, their index and lock, the traceback: 0600 in 0700.
    """
    own, cache = write_everything(place, monkeypatch)

    names = {path.name for folder in (own, cache) for path in folder.rglob("*")}
    assert {"manifest.json", "traceback.txt", "config.json", ".lock"} <= names
    assert any(name.endswith(".whl") for name in names)
    assert open_to_others(own) == open_to_others(cache) == []


def test_a_file_that_others_can_read_would_be_noticed(place, monkeypatch):
    """
    Negative control: with wider modes the same writers leave files and folders open.
    """
    monkeypatch.setattr(private_files, "DIRECTORY_MODE", 0o755)
    monkeypatch.setattr(private_files, "_OTHERS", 0)
    monkeypatch.setattr(stores, "FILE_MODE", 0o644)
    own, cache = write_everything(place, monkeypatch)
    assert own in open_to_others(own)
    assert [p for p in open_to_others(own) if p.parent.name == "blobs"]
    assert cache / "wheels" in open_to_others(cache)


def test_a_report_for_ci_is_private_when_new(place):
    """
    The JUnit file names hosts; an existing one keeps the mode that its owner gave it.
    """
    report = place / "reports" / "verify.xml"
    verify_run._write(report, place / "none.xml", [], ())
    assert mode_of(report) == 0o600
    report.chmod(0o644)
    with create_output(report) as file:
        file.write(b"x")
    assert (mode_of(report), report.read_bytes()) == (0o644, b"x")


def test_a_wider_directory_of_ours_is_tightened(place):
    """
    A .slipway of an older version was 0755; its owner keeps all that is in it.
    """
    old = place / ".slipway"
    old.mkdir(mode=0o777)
    (old / "file").write_text("x")
    private_directory(old)
    assert mode_of(old) == 0o700
    assert (old / "file").read_text() == "x"


def test_a_wider_file_of_ours_is_tightened(place):
    """
    A lock that an older version left 0666 is 0600 once it is opened.
    """
    path = place / "lock"
    path.touch(0o666)
    open_private(path).close()
    assert mode_of(path) == 0o600


def refusal(action):
    with pytest.raises(DeployError) as caught:
        action()
    assert caught.value.fix
    return caught.value


def test_a_link_is_not_followed(place):
    """
    Neither as a directory nor as a file; what it names keeps its mode and content.
    """
    target = place / "target"
    target.mkdir(mode=0o755)
    (place / ".slipway").symlink_to(target)
    assert "symbolic link" in refusal(lambda: private_directory(place / ".slipway")).why
    assert mode_of(target) == 0o755

    (target / "file").write_text("content")
    (place / "lock").symlink_to(target / "file")
    assert "symbolic link" in refusal(lambda: open_private(place / "lock")).why

    (place / "traceback.txt").symlink_to(target / "file")
    write_private(place / "traceback.txt", "new")
    assert (target / "file").read_text() == "content"
    assert (place / "traceback.txt").read_text() == "new"
    assert mode_of(place / "traceback.txt") == 0o600


def test_a_file_in_place_of_the_directory_is_refused(place):
    (place / ".slipway").touch()
    assert "not a directory" in refusal(lambda: private_directory(place / ".slipway")).why


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("which", ["directory", "parent", "file"])
def test_what_another_user_owns_is_refused(place, which):
    """
    Its owner could read it, or put something else in its place.
    """
    folder = place / ".slipway"
    folder.mkdir(mode=0o700)
    (folder / "lock").touch()
    os.chown({"directory": folder, "parent": place, "file": folder / "lock"}[which], STRANGER, 0)
    if which == "file":
        error = refusal(lambda: open_private(folder / "lock"))
    else:
        error = refusal(lambda: private_directory(folder))
    assert f"user {STRANGER} owns it" in error.why


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to a group")
@pytest.mark.parametrize(
    ("mode", "group", "words"),
    [
        (0o777, 0, "every user can replace it"),
        (0o775, STRANGER, f"group {STRANGER} can replace it"),
        (0o775, 0, None),  # a group without other members
        (0o1777, STRANGER, None),  # as /tmp
        (0o755, STRANGER, None),
    ],
)
def test_a_parent_that_others_can_write_to_is_refused(place, mode, group, words):
    """
    They could rename .slipway and make their own; the remedy names the directory.
    """
    os.chown(place, 0, group)
    place.chmod(mode)
    if words is None:
        private_directory(place / ".slipway")
        return
    error = refusal(lambda: private_directory(place / ".slipway"))
    assert words in error.why
    assert error.fix == f"chmod go-w {place}"


def test_missing_parents_are_private_too(place):
    """
    ~/.cache may be missing on a machine for CI.
    """
    private_directory(place / "cache" / "slipway" / "wheels")
    assert open_to_others(place / "cache") == []


def test_an_existing_directory_is_checked_and_not_made(place):
    """
    At the start of a task only what exists is checked.
    """
    (place / ".slipway").mkdir(mode=0o755)
    check_directory(place / ".slipway")
    assert mode_of(place / ".slipway") == 0o700


def test_a_file_and_its_name_are_on_the_disk_when_it_is_written(place, monkeypatch):
    """
    An authority that clients trust must not be gone, or empty, after a power cut.
    """
    synced = []

    def fsync(descriptor):
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(("directory" if is_directory else "file", (place / "key").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_private(place / "key", "key")
    assert synced == [("file", False), ("directory", True)]


def test_a_full_disk_leaves_the_old_file_and_names_it(place, monkeypatch):
    """
    No half file under the name, and no draft beside it.
    """
    path = place / "file"
    write_private(path, "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(private_files.os, "fdopen", full)
    with pytest.raises(OSError) as caught:
        write_private(path, "new")
    error = boundary.explain(caught.value)
    assert (error.what, error.why) == (str(path), "No space left on device")
    assert [p.name for p in place.iterdir()] == ["file"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://u:p@h/x and http://t@h", "at https://[hidden]@h/x and http://[hidden]@h"),
        ("socks5://u:p%40@h:1", "socks5://[hidden]@h:1"),
        ("https://u:p@ss@h/", "https://[hidden]@h/"),
        ("https://h/a@b, ann@example.org, root@n1:22", None),
    ],
)
def test_user_and_password_of_a_url_are_hidden(text, shown):
    """
    In every error, whatever program said it; other text stays as it is.
    """
    assert hide_passwords(text) == (shown or text)
    error = DeployError("w", why=text, fix=text)
    assert (error.why, error.fix) == (shown or text, shown or text)
    assert "p@" not in str(DeployError("https://u:p@h", why="w", fix="f"))


def test_a_long_text_is_searched_in_linear_time():
    """
    The words of a program are foreign: they must not hold up the error that quotes them.
    """
    assert hide_passwords("://" + "a@" * 50_000 + " ") == "://[hidden]@ "
    assert hide_passwords("://" * 100_000) == "://" * 100_000


def test_a_password_of_a_url_is_in_no_output(capsys):
    """
    Whatever is printed passes one door, which hides it: lines, JSON documents, tracebacks.
    """
    url = "https://reader:s3cret@index.invalid/simple"
    terminal.print_progress(f"fetching from {url}")
    terminal.print_text(f"done with {url}")
    terminal.print_json({"what": [url, {url: url}]})
    terminal.print_traceback(RuntimeError(url))
    out, err = capsys.readouterr()
    assert "s3cret" not in out + err
    assert (out + err).count("https://[hidden]@index.invalid/simple") == 6
