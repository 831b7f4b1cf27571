"""
python.place, with small archives whose Python is a shell script.
"""

import gzip
import hashlib
import io
import os
import tarfile

import pytest

from deploy.host.bundle import interpreters
from deploy.host.bundle.interpreters import named_in, unpack
from deploy.host.layout import python_upload
from deploy.host.protocol import FactQuery, HostError, PythonPlace, VenvBuild

PROGRAM = b"#!/bin/sh\necho 3.11.99\n"


def entry(name, content=b"", kind=tarfile.REGTYPE, mode=0o644, to=""):
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size, member.linkname = kind, mode, len(content), to
    return member, content


def pax(**headers):
    """
    Return an entry with extended headers, whose values may be anything.
    """
    member, content = entry("python/x", b"x")
    member.pax_headers = headers
    return member, content


GOOD = (
    entry("python", kind=tarfile.DIRTYPE),
    entry("python/bin/python3.11", PROGRAM, mode=0o4777),
    entry("python/bin/python3", kind=tarfile.SYMTYPE, to="python3.11"),
    entry("python/share/a/b", b"text", mode=0o666),
    entry("python/share/c", kind=tarfile.LNKTYPE, to="python/share/a/b"),
    entry("python/lib/d", kind=tarfile.SYMTYPE, to="../share/a"),
)


def archive(path, *entries):
    with (
        gzip.GzipFile(path, "wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as file,
    ):
        for member, content in entries:
            file.addfile(member, io.BytesIO(content))
    return path


def upload(provisioned, *entries, release="3.11.99"):
    folder = provisioned.layout.incoming
    folder.mkdir(parents=True, exist_ok=True)
    content = archive(folder / "new", *entries).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / "new").rename(folder / python_upload(sha256))
    return PythonPlace("3.11", release, sha256, len(content))


def test_a_python_is_unpacked_once_and_named_by_the_hash_of_its_archive(provisioned):
    """
    Everything in it is root's, without rights of its archive; the archive is deleted.
    """
    provisioned.fence = None
    request = upload(provisioned, *GOOD)
    assert provisioned.call(request).placed is True
    tree = provisioned.layout.pythons / request.sha256
    assert (tree / "bin/python3").resolve() == (tree / "bin/python3.11").resolve()
    assert (tree / "share/c").read_bytes() == b"text"
    modes = {
        name: (tree / name).stat().st_mode & 0o7777
        for name in ("bin/python3.11", "share/a/b", "share/c", "share")
    }
    assert modes == {
        "bin/python3.11": 0o755,
        "share/a/b": 0o644,
        "share/c": 0o644,
        "share": 0o755,
    }
    assert {path.stat().st_uid for path in tree.rglob("*")} == {os.geteuid()}
    assert list(provisioned.layout.incoming.iterdir()) == []
    runs = [argv for argv in provisioned.system.calls if "python3.11" in " ".join(argv)]
    assert {argv[0] for argv in runs} == {"systemd-run"}
    assert provisioned.call(request).placed is False


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.chmod(0o777),
        lambda path: (path.unlink(), path.symlink_to("/bin/true")),
    ],
)
def test_a_python_whose_program_was_changed_is_placed_again(provisioned, change):
    provisioned.fence = None
    request = upload(provisioned, *GOOD)
    provisioned.call(request)
    python = provisioned.layout.pythons / request.sha256 / "bin/python3.11"
    change(python)
    assert provisioned.call(upload(provisioned, *GOOD)).placed is True
    assert (python.read_bytes(), python.lstat().st_mode & 0o7777) == (PROGRAM, 0o755)
    assert [path.name for path in python.parents[2].iterdir()] == [request.sha256]


def facts_of(host, sha256, *, deep=False):
    path = f"/opt/slipway/pythons/{sha256}"
    return host.call(FactQuery(venvs=(path,), deep=deep)).venvs[path]


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "share/a/b").write_bytes(b"test"),
        lambda tree: (tree / "share/c").unlink(),
        lambda tree: (tree / "share/d").write_bytes(b""),
        lambda tree: (tree / "share/a/b").chmod(0o777),
        lambda tree: (tree / "bin/python3").unlink(),
        lambda tree: (tree / ".files").unlink(),
    ],
)
def test_a_python_with_another_file_than_its_archive_is_found_and_placed_again(provisioned, change):
    """
    Root and the slots run what is in it; the program alone was looked at.
    """
    provisioned.fence = None
    request = upload(provisioned, *GOOD)
    provisioned.call(request)
    tree = provisioned.layout.pythons / request.sha256
    found = facts_of(provisioned, request.sha256)
    assert (found.is_recorded, found.altered, found.problem) == (True, (), None)

    change(tree)

    found = facts_of(provisioned, request.sha256)
    assert found.altered_count == 1 or not found.is_recorded
    assert provisioned.call(upload(provisioned, *GOOD)).placed is True
    assert facts_of(provisioned, request.sha256, deep=True).altered_count == 0
    assert (tree / "share/a/b").read_bytes() == b"text"
    assert [path.name for path in tree.parent.iterdir()] == [request.sha256]
    assert provisioned.call(upload(provisioned, *GOOD)).placed is False


def test_an_archive_cannot_bring_its_own_record(provisioned):
    provisioned.fence = None
    request = upload(provisioned, *GOOD, entry("python/.files", b"x"))
    provisioned.call(request)
    assert facts_of(provisioned, request.sha256).is_recorded


@pytest.mark.parametrize(
    "bad",
    [
        entry("/etc/x", b"x"),
        entry("python/../../x", b"x"),
        entry("other/x", b"x"),
        entry("python//x", b"x"),
        entry("../x", b"x"),
        entry("python/x", kind=tarfile.SYMTYPE, to="/etc/passwd"),
        entry("python/x", kind=tarfile.SYMTYPE, to="../x"),
        entry("python/a/x", kind=tarfile.SYMTYPE, to="../../x"),
        entry("python/a/x", kind=tarfile.SYMTYPE, to="b/../../../x"),
        entry("python/x", kind=tarfile.LNKTYPE, to="/etc/passwd"),
        entry("python/x", kind=tarfile.LNKTYPE, to="python/../../x"),
        entry("python/x", kind=tarfile.LNKTYPE, to="python/lib/d/b"),
        entry("python/x", kind=tarfile.CHRTYPE),
        entry("python/x", kind=tarfile.FIFOTYPE),
        entry("python/lib/d/through", b"x"),
        entry("python/bin/python3.11", b"again"),
        entry("python/bin/python3/x", b"x"),
        pax(path="python/a\0b"),
        pax(**{"GNU.sparse.map": "a,b", "GNU.sparse.size": "1"}),
    ],
    ids=lambda bad: f"{bad[0].name}-{bad[0].linkname}",
)
def test_an_archive_with_anything_that_leads_out_of_it_is_refused(provisioned, tmp_path, bad):
    """
    Nothing is placed, and nothing is left of it.  Negative control: GOOD alone is placed above.
    """
    provisioned.fence = None
    request = upload(provisioned, *GOOD, bad)
    error = provisioned.refusal(request)
    assert error.kind == "BundleTampered"
    assert list(provisioned.layout.pythons.iterdir()) == []
    assert list(provisioned.layout.incoming.iterdir()) == []


def test_second_names_count_against_the_size_that_is_unpacked(provisioned, monkeypatch):
    """
    Each is a file of its own: a small archive of them would fill the disk.
    """
    monkeypatch.setattr(interpreters, "UNPACKED_MAX", 10_000)
    provisioned.fence = None
    links = [entry(f"python/n{n}", kind=tarfile.LNKTYPE, to="python/share/big") for n in range(10)]
    request = upload(provisioned, *GOOD, entry("python/share/big", bytes(5_000)), *links)

    assert "too large" in provisioned.refusal(request).why
    assert list(provisioned.layout.pythons.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "kind", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "BundleTruncated", "bytes"),
        (lambda path: path.write_bytes(b"0" + path.read_bytes()[1:]), "BundleTampered", "SHA-256"),
        (lambda path: path.unlink(), "BundleTruncated", "missing"),
    ],
)
def test_the_hash_is_compared_before_anything_is_unpacked(provisioned, spoil, kind, why):
    provisioned.fence = None
    request = upload(provisioned, *GOOD)
    spoil(provisioned.layout.incoming / python_upload(request.sha256))
    error = provisioned.refusal(request)
    assert error.kind == kind
    assert why in error.why
    assert not provisioned.layout.pythons.exists()


@pytest.mark.parametrize(
    ("entries", "release", "why"),
    [
        (GOOD, "3.11.98", "it should be Python 3.11.98, and says 3.11.99"),
        (GOOD[:1], "3.11.99", "no program bin/python3.11"),
        ((entry("python/bin/python3.11", PROGRAM),), "3.11.99", "no program"),
        ((entry("python/bin/python3.11", b"#!/bin/sh\nexit 3\n", mode=0o755),), "3.11.99",
         "exit status 3"),
    ],
)  # fmt: skip
def test_a_python_that_does_not_run_or_is_another_is_refused(provisioned, entries, release, why):
    provisioned.fence = None
    error = provisioned.refusal(upload(provisioned, *entries, release=release))
    assert why in error.why
    assert list(provisioned.layout.pythons.iterdir()) == []


def test_what_is_no_archive_is_one_error(tmp_path):
    for number, content in enumerate((b"", b"x" * 1000, b"\x1f\x8b\x08" + b"\0" * 100)):
        path = tmp_path / str(number)
        path.write_bytes(content)
        with pytest.raises(HostError):
            unpack(path, tmp_path / f"out{number}")


def test_an_environment_uses_the_python_that_its_lock_names(provisioned):
    """
    A host without it refuses by name, and does not take another.
    """
    provisioned.fence = None
    lock = f"# interpreter: 3.11.99 sha256:{'a' * 64}\nsmall==1.0 --hash=sha256:{'b' * 64}\n"
    assert named_in(lock) == ("3.11.99", "a" * 64)
    assert named_in(lock.partition("\n")[2]) is None
    digest = hashlib.sha256(lock.encode()).hexdigest()
    error = provisioned.refusal(VenvBuild(lock, digest, "3.11", ()))
    assert "standalone Python 3.11" in error.what
    assert f"pythons/{'a' * 64}/bin/python3.11 is not there" in error.why
    wanted = f"mirrors.python.archives have release 3.11.99 with sha256 {'a' * 64}"
    assert wanted in error.fix
