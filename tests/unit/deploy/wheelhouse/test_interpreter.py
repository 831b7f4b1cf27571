import hashlib

import pytest

from deploy.errors import CommandFailed, InventoryError
from deploy.inventory.schema import PythonArchive, PythonMirror
from deploy.versions.interpreters import load_interpreters
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import ensure_archive, interpreter_of, lock_digest
from deploy.wheelhouse.interpreter import InterpreterPin

ROW = load_matrix().row("torch-2.13-cpu")
CONTENT = b"an archive"


def pin_of(content=CONTENT, path="20260101/cpython-3.11.9+x.tar.gz"):
    return InterpreterPin("3.11", "3.11.9", path, hashlib.sha256(content).hexdigest())


@pytest.fixture
def mirror(tmp_path):
    pin = pin_of()
    path = tmp_path / "mirror" / pin.path
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return tmp_path / "mirror"


@pytest.mark.parametrize("kind", ["folder", "url", "both"])
def test_an_archive_is_fetched_once_and_only_with_its_hash(tmp_path, mirror, kind):
    """
    From a folder, or from a URL, in which the plus sign is quoted; the URL has what a folder lacks.
    """
    of = PythonMirror(folder=mirror)
    if kind != "folder":
        folder = tmp_path / "empty" if kind == "both" else None
        of = PythonMirror.model_construct(folder=folder, url=mirror.as_uri(), archives=())
    cache = tmp_path / "cache"
    path = ensure_archive(pin_of(), of, cache=cache)
    assert path.read_bytes() == CONTENT
    with pytest.raises(CommandFailed) as caught:
        ensure_archive(pin_of(b"another"), of, cache=cache)
    assert "has the SHA-256" in caught.value.why
    (mirror / pin_of().path).unlink()
    assert ensure_archive(pin_of(), of, cache=cache) == path
    with pytest.raises(CommandFailed) as caught:
        ensure_archive(pin_of(b"another"), of, cache=cache)
    assert "mirrors.python.archives" in caught.value.fix
    assert [file.name for file in cache.iterdir()] == [path.name]


def test_a_folder_with_something_else_under_the_name_is_refused(tmp_path, mirror):
    (mirror / pin_of().path).unlink()
    (mirror / pin_of().path).mkdir()
    with pytest.raises(CommandFailed, match="could not be fetched"):
        ensure_archive(pin_of(), PythonMirror(folder=mirror), cache=tmp_path / "cache")


def test_the_python_of_a_row_is_that_of_the_pins_or_of_the_fleet(tmp_path):
    """
    Without a mirror it is the distribution's.  Another Python is another environment.
    """
    assert interpreter_of(PythonMirror(), ROW) is None
    pinned = interpreter_of(PythonMirror(folder=tmp_path), ROW)
    own = PythonArchive(release="3.11.9", path="a.tar.gz", sha256="c" * 64)
    fleets = interpreter_of(PythonMirror(folder=tmp_path, archives=(own,)), ROW)
    assert pinned.release == load_interpreters()[0].release
    assert (fleets.release, fleets.sha256) == ("3.11.9", "c" * 64)
    lines = (None, pinned.line, fleets.line)
    assert len({lock_digest(ROW, interpreter=line) for line in lines}) == 3


def test_a_python_without_an_archive_is_refused_before_any_connection(tmp_path):
    row = ROW.model_copy(update={"python": "3.10"})
    with pytest.raises(InventoryError) as caught:
        interpreter_of(PythonMirror(folder=tmp_path), row)
    assert "3.11, 3.12, 3.13, 3.14" in caught.value.why


def test_every_row_with_a_lock_has_a_standalone_python():
    pythons = {pin.python for pin in load_interpreters()}
    assert {row.python for row in load_matrix().rows if row.lock} <= pythons
    for pin in load_interpreters():
        assert pin.release.startswith(f"{pin.python}.")
        assert f"cpython-{pin.release}+" in pin.path
        PythonArchive(
            release=pin.release, path=pin.path, sha256=pin.sha256
        )  # a fleet file may name it too


@pytest.mark.parametrize(
    "keys",
    [
        {"archives": [{"release": "3.11.1", "path": "a.tar.gz",
                       "sha256": "c" * 64}]},
        {"folder": "/a", "archives": [{"release": "3.11.1", "path": "a.tar.gz", "sha256": "c" * 64},
                                      {"release": "3.11.2", "path": "b.tar.gz",
                                       "sha256": "d" * 64}]},
        {"folder": "/a", "archives": [{"release": "3.11", "path": "a.tar.gz", "sha256": "c" * 64}]},
        {"folder": "/a", "archives": [{"release": "3.11.1",
                                       "path": "../a.tar.gz", "sha256": "c" * 64}]},
        {"url": "file:///etc"},
        {"url": "https://me:secret@host/x"},
    ],
)  # fmt: skip
def test_a_mirror_that_contradicts_itself_is_refused(keys):
    with pytest.raises(ValueError, match=r"should|needs"):
        PythonMirror.model_validate(keys)
