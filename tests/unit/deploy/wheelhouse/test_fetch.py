"""
With the real pip, against a folder of hand-made wheels: nothing leaves the machine.
"""

import hashlib
import json
import shutil
import subprocess
import zipfile

import pytest

from deploy.errors import CommandFailed, InventoryError
from deploy.versions.matrix import Row
from deploy.wheelhouse import cached_lock, ensure_lock, lock_digest, unfetched_lock
from deploy.wheelhouse.fetch import unpacked_bytes

ROW = Row(
    name="torch-9.0-cpu",
    torch="9.0",
    build="cpu",
    cuda=None,
    driver_min=None,
    python="3.11",
    capabilities=(),
    lock="torch.lock",
    sources=("made up",),
)


def make_wheel(folder, project, version, tags="py3-none-any"):
    path = folder / f"{project}-{version}-{tags}.whl"
    info = f"{project}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        # A fixed date: the hash is part of the test's locks.
        wheel.writestr(
            zipfile.ZipInfo(f"{info}/METADATA"), f"Name: {project}\nVersion: {version}\n"
        )
        wheel.writestr(zipfile.ZipInfo(f"{info}/WHEEL"), "Wheel-Version: 1.0\n")
    return path


def make_world(folder, monkeypatch):
    """
    Return an empty cache, an index with torch and one more, and locks for both.
    """
    index, requirements, cache = (folder / name for name in ("index", "requirements", "cache"))
    index.mkdir()
    requirements.mkdir()
    for project, version, lock in (("torch", "9.0+cpu", "torch"), ("small", "1.0", "runtime")):
        digest = hashlib.sha256(make_wheel(index, project, version).read_bytes()).hexdigest()
        text = f"{project}=={version} --hash=sha256:{digest}\n"
        (requirements / f"{lock}.lock").write_text(text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return requirements, cache, index


@pytest.fixture
def world(tmp_path, monkeypatch):
    """
    An index with torch and one more, locks for both, an empty cache.
    """
    return make_world(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def full_cache(tmp_path_factory):
    """
    The cache of a world after a first fetch.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = make_world(tmp_path_factory.mktemp("fetched"), monkeypatch)
        ensure(world)
    return world[1]


@pytest.fixture
def fetched(world, full_cache):
    """
    A world whose wheels are in the cache.
    """
    shutil.copytree(full_cache, world[1])
    assert cached_lock(ROW, cache=world[1], requirements=world[0]) is not None
    return world


def lock_wheel(world, project, version, tags):
    """
    Have the index hold one wheel of *project*, with *tags*, and the runtime's lock pin it.
    """
    requirements, _, index = world
    for path in index.glob(f"{project}-*"):
        path.unlink()
    digest = hashlib.sha256(make_wheel(index, project, version, tags).read_bytes()).hexdigest()
    text = f"{project}=={version} --hash=sha256:{digest}\n"
    (requirements / "runtime.lock").write_text(text)


def ensure(world, row=ROW):
    requirements, cache, _ = world
    return ensure_lock(row, cache=cache, progress=lambda _: None, requirements=requirements)


def test_nothing_is_fetched_to_know_a_lock(world):
    """
    Its digest and text are those of the lock with wheels, which is known once they were fetched.
    """
    requirements, cache, _ = world
    lock = unfetched_lock(ROW, requirements=requirements)
    assert cached_lock(ROW, cache=cache, requirements=requirements) is None
    assert not cache.exists()
    fetched = ensure(world)
    assert (lock.digest, lock.text, lock.wheels) == (fetched.digest, fetched.text, ())
    assert fetched.is_fetched
    assert not lock.is_fetched
    assert cached_lock(ROW, cache=cache, requirements=requirements) == fetched


def test_wheels_are_fetched_once(world):
    """
    The second time nothing is asked of pip: its index may be gone.
    """
    first = ensure(world)
    for path in world[2].iterdir():
        path.unlink()
    second = ensure(world)

    assert first == second
    assert [wheel.file for wheel in first.wheels] == [
        "small-1.0-py3-none-any.whl",
        "torch-9.0+cpu-py3-none-any.whl",
    ]
    assert first.digest == lock_digest(ROW, requirements=world[0])
    for wheel in first.wheels:
        content = wheel.path.read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (wheel.sha256, wheel.size)


def test_a_row_leaves_the_wheels_that_it_shares_as_they_are(fetched):
    """
    The other row needs no new download.
    """
    requirements, cache, index = fetched
    ensure(fetched)
    digest = hashlib.sha256(make_wheel(index, "torch", "9.1+cpu").read_bytes()).hexdigest()
    (requirements / "newer.lock").write_text(f"torch==9.1+cpu --hash=sha256:{digest}\n")
    newer = ROW.model_copy(update={"torch": "9.1", "lock": "newer.lock"})
    assert "small-1.0-py3-none-any.whl" in [wheel.file for wheel in ensure(fetched, newer).wheels]
    assert cached_lock(ROW, cache=cache, requirements=requirements) is not None


def test_wheels_of_the_cache_need_an_index_of_their_lock_only(fetched):
    """
    Where it is missing they are compared with the lock; pip's index may be gone.
    """
    first = ensure(fetched)
    index_of(fetched).unlink()
    for path in fetched[2].iterdir():
        path.unlink()
    assert ensure(fetched) == first
    index_of(fetched).unlink()
    first.wheels[0].path.write_bytes(b"rotten")  # negative control
    with pytest.raises(CommandFailed):
        ensure(fetched)


def test_a_wheel_that_changed_in_the_cache_is_fetched_again(fetched):
    """
    What lies in the cache is used only as it was checked.
    """
    wheel = ensure(fetched).wheels[0]
    wheel.path.write_bytes(b"rotten")
    assert hashlib.sha256(ensure(fetched).wheels[0].path.read_bytes()).hexdigest() == wheel.sha256


def test_another_content_under_the_same_name_is_refused(world):
    """
    An index that serves another file than the locked one is an error, and nothing is kept.
    """
    requirements, cache, _ = world
    wrong = "0" * 64
    (requirements / "runtime.lock").write_text(f"small==1.0 --hash=sha256:{wrong}\n")
    with pytest.raises(CommandFailed) as caught:
        ensure(world)
    assert "HASH" in caught.value.why.upper()
    assert list(cache.glob("*.whl")) == []


@pytest.mark.parametrize(
    "tag", ["manylinux1", "manylinux2014", "manylinux_2_18", "manylinux_2_28", "manylinux_2_35"]
)
def test_wheels_for_any_glibc_up_to_that_of_the_hosts_are_taken(world, tag):
    """
    A wheel for glibc 2.36 or older runs on the hosts, whichever tag says so.
    """
    lock_wheel(world, "small", "1.0", f"py3-none-{tag}_x86_64")
    assert [w.file for w in ensure(world).wheels if tag in w.file]


@pytest.mark.parametrize("tag", ["manylinux_2_36_x86_64", "manylinux_2_28_aarch64"])
def test_wheels_for_other_machines_would_be_refused(world, tag):
    """
    Negative control: what the hosts cannot run is not fetched for them.
    """
    lock_wheel(world, "small", "1.0", f"py3-none-{tag}")
    with pytest.raises(CommandFailed, match="could not be fetched"):
        ensure(world)


def test_a_row_without_a_lock_is_refused(world):
    """
    A row that can't be provisioned yet says so, before anything is fetched.
    """
    with pytest.raises(InventoryError, match="cannot be provisioned yet"):
        ensure_lock(
            ROW.model_copy(update={"lock": None}),
            cache=world[1],
            progress=lambda _: None,
            requirements=world[0],
        )


@pytest.mark.parametrize("wheel", ["9.0", None])
def test_a_wheel_without_a_build_is_not_taken_for_one_with(world, wheel):
    """
    Of two wheels of one version that differ in the build alone the row's is taken, for either row.
    """
    requirements, _, index = world
    bare = make_wheel(index, "torch", "9.0")
    if wheel is not None:
        digest = hashlib.sha256(bare.read_bytes()).hexdigest()
        (requirements / "torch.lock").write_text(f"torch=={wheel} --hash=sha256:{digest}\n")

    found = ensure(world, ROW.model_copy(update={"wheel": wheel}))

    assert f"torch-{wheel or '9.0+cpu'}-py3-none-any.whl" in [w.file for w in found.wheels]
    assert ("torch===9.0 " in found.text) is (wheel is not None)


def test_a_wheel_without_a_build_would_be_mistaken(world):
    """
    Negative control: pinned with two signs, pip takes the wheel that names its build.
    """
    requirements, _, index = world
    digest = hashlib.sha256(make_wheel(index, "small", "9.0").read_bytes()).hexdigest()
    make_wheel(index, "small", "9.0+cpu")
    (requirements / "runtime.lock").write_text(f"small==9.0 --hash=sha256:{digest}\n")
    with pytest.raises(CommandFailed) as caught:
        ensure(world)
    assert "HASH" in caught.value.why.upper()


def test_a_lock_of_another_torch_is_refused(world):
    """
    The row and its lock have to agree on the version of torch.
    """
    with pytest.raises(InventoryError) as caught:
        lock_digest(ROW.model_copy(update={"torch": "9.1"}), requirements=world[0])
    assert "torch==9.1+cpu" in caught.value.why


def test_a_lock_of_another_build_is_refused(world):
    """
    A row whose wheel leaves the build out does not take the lock of one that names it.
    """
    with pytest.raises(InventoryError) as caught:
        lock_digest(ROW.model_copy(update={"wheel": "9.0"}), requirements=world[0])
    assert "does not pin torch==9.0" in caught.value.why


def index_of(world):
    [index] = world[1].glob("*.json")
    return index


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../outside.whl"},
        {"file": "/etc/hostname"},
        {"file": "\0"},
        {"sha256": "0" * 64},
        {"file": None},
    ],
)
def test_an_index_of_the_cache_names_only_wheels_of_its_lock(fetched, change):
    """
    An index that names another file or hash is not used: the wheels are fetched again.
    """
    first = ensure(fetched)
    entries = json.loads(index_of(fetched).read_text())
    (fetched[1].parent / "outside.whl").write_bytes(first.wheels[0].path.read_bytes())
    index_of(fetched).write_text(json.dumps([entries[0] | change, *entries[1:]]))
    assert ensure(fetched) == first


@pytest.mark.parametrize("text", ["", "[" * 100_000, '[{"file": 1}]', "\udcff"])
def test_an_index_of_the_cache_that_is_damaged_is_made_again(fetched, text):
    first = ensure(fetched)
    index_of(fetched).write_bytes(text.encode(errors="surrogateescape"))
    assert ensure(fetched) == first


def test_a_link_in_the_cache_is_no_wheel(fetched, tmp_path):
    """
    A link is replaced by the file that was checked.
    """
    wheel = ensure(fetched).wheels[0].path
    wheel.rename(tmp_path / "elsewhere")
    wheel.symlink_to(tmp_path / "elsewhere")
    assert not ensure(fetched).wheels[0].path.is_symlink()


def test_a_password_of_an_index_is_in_no_error(world, monkeypatch):
    """
    pip's own words are quoted, without the user and password of a URL.
    """
    password = "s3cret-of-the-index"
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://reader:{password}@127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(CommandFailed) as caught:
        ensure(world)
    assert password not in str(caught.value)


def test_a_password_of_an_index_is_in_no_argument(world, monkeypatch):
    """
    pip reads the index from its own configuration; its arguments have the lock alone.
    """
    calls = []
    real = subprocess.run

    def run(argv, **kwargs):
        calls.append(argv)
        return real(argv, **kwargs)

    monkeypatch.setattr("deploy.wheelhouse.fetch.subprocess.run", run)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://reader:s3cret-of-the-index@127.0.0.1:1/")
    ensure(world)
    assert calls
    assert not any("s3cret" in word for argv in calls for word in argv)


def test_the_room_that_a_wheel_takes_is_that_of_its_files(tmp_path):
    """
    From its zip directory: blocks of each file, and bytecode as large as each module.  An index
    of an older version, which does not have it, is read all the same.
    """
    path = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("a/__init__.py", b"#" * 5000)
        wheel.writestr("a/data.bin", bytes(10_000_000))
    assert path.stat().st_size < 100_000
    assert unpacked_bytes(path) == 2 * 8192 + 10_002_432
    path.write_bytes(b"no zip")
    with pytest.raises(CommandFailed, match="could not be fetched"):
        unpacked_bytes(path)


def test_an_index_of_an_older_version_needs_no_new_download(fetched):
    first = ensure(fetched)
    index = fetched[1] / f"{first.digest}.json"
    entries = json.loads(index.read_text())
    assert all(entry.pop("unpacked") > 0 for entry in entries)
    index.write_text(json.dumps(entries))
    assert cached_lock(ROW, cache=fetched[1], requirements=fetched[0]) == first
