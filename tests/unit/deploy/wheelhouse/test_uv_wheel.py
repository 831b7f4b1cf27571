"""
With the real pip, against a hand-made wheel: nothing leaves the machine.
"""

import hashlib
import zipfile

import pytest

from deploy.errors import CommandFailed, InventoryError
from deploy.wheelhouse.uv_wheel import ensure_uv, fetch_uv_wheel, uv_lock_text, uv_program

PROGRAM = b"\x7fELF, in truth"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """
    A folder of wheels with uv for two platforms, and the text of a lock with both hashes.
    """
    index = tmp_path / "index"
    index.mkdir()
    hashes = []
    for tag, content in (("manylinux2014_x86_64", PROGRAM), ("macosx_11_0_arm64", b"other")):
        path = index / f"uv-9.9-py3-none-{tag}.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(zipfile.ZipInfo("uv-9.9.dist-info/METADATA"), "Name: uv\nVersion: 9.9\n")
            wheel.writestr(zipfile.ZipInfo("uv-9.9.dist-info/WHEEL"), "Wheel-Version: 1.0\n")
            wheel.writestr(zipfile.ZipInfo("uv-9.9.data/scripts/uv"), content)
        hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    options = " \\\n".join(f"    --hash=sha256:{one}" for one in hashes)
    return tmp_path, f"uv==9.9 \\\n{options}\n    # via -r x.in\nuvicorn==1.0\n"


def test_hosts_get_the_uv_of_their_platform_by_its_hash(world):
    """
    The lock is made once; a run fetches the wheel only while the cache lacks the program.
    """
    tmp_path, control = world
    (tmp_path / "uv.lock").write_text(uv_lock_text(fetch_uv_wheel(control, tmp_path)))
    uv = uv_program(cache=tmp_path / "cache", requirements=tmp_path)
    assert (uv.sha256, uv.size) == (hashlib.sha256(PROGRAM).hexdigest(), len(PROGRAM))
    assert not uv.is_fetched
    ensure_uv(uv)
    assert uv.path.read_bytes() == PROGRAM
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    ensure_uv(uv)  # from the cache


def test_a_wheel_with_another_program_or_hash_is_refused(world):
    """
    Nothing of it stays in the cache.
    """
    tmp_path, control = world
    text = uv_lock_text(fetch_uv_wheel(control, tmp_path))
    program, wheel = hashlib.sha256(PROGRAM).hexdigest(), text.rstrip()[-64:]
    for found, why in ((program, "is not the one"), (wheel, "hash")):
        (tmp_path / "uv.lock").write_text(text.replace(found, "0" * 64))
        uv = uv_program(cache=tmp_path / "cache", requirements=tmp_path)
        with pytest.raises(CommandFailed) as caught:
            ensure_uv(uv)
        assert why in caught.value.why.lower()
        assert not uv.path.exists()


@pytest.mark.parametrize("text", ["", "uv==9.9\n", "# program: sha256:00 3 bytes\nuv==9.9\n"])
def test_a_lock_of_uv_that_is_none_is_refused_with_the_command_that_makes_it(tmp_path, text):
    (tmp_path / "uv.lock").write_text(text)
    with pytest.raises(InventoryError) as caught:
        uv_program(cache=tmp_path, requirements=tmp_path)
    assert "deploy.wheelhouse.renew uv.lock" in caught.value.fix
