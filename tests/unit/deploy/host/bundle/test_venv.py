"""
venv.build, with the real uv and a wheel of one module.
"""

import hashlib
import shutil

import pytest

from deploy.host.bundle import venv as venvs
from deploy.host.protocol import FactQuery, VenvBuild, VenvFacts, Wheel
from deploy.host.system import ProgramResult
from tests.unit.deploy.bundle.builders import make_lock
from tests.unit.deploy.host.staged import damage


def build_request(of, **changes):
    wheels = tuple(Wheel(w.file, w.sha256, w.size) for w in of.wheels)
    fields = {"lock": of.text, "digest": of.digest, "python": of.python, "wheels": wheels}
    return VenvBuild(**fields | changes)


def test_provisioning_builds_a_venv_without_a_lease(provisioned, workshop):
    """
    Nothing uses it yet; the second call finds it complete.
    """
    provisioned.fence = None
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)

    assert provisioned.call(build_request(lock)).built is True
    again = provisioned.call(build_request(lock))
    assert (again.built, again.took_s) == (False, 0.0)


def test_a_wheel_that_the_build_user_could_not_read_is_mended(provisioned, workshop):
    provisioned.fence = None
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)
    path = provisioned.layout.wheelhouse / lock.wheels[0].file
    path.chmod(0o600)
    assert provisioned.call(build_request(lock)).built is True
    assert path.stat().st_mode & 0o7777 == 0o640


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda path: path.write_bytes(damage(path.read_bytes())), "BundleTampered"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "BundleTruncated"),
        (lambda path: path.unlink(), "BundleTruncated"),
    ],
)
def test_a_venv_has_only_the_locked_wheels(provisioned, workshop, spoil, kind):
    """
    Another wheel is refused, and no venv remains.
    """
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)
    spoil(provisioned.layout.wheelhouse / lock.wheels[0].file)

    error = provisioned.refusal(build_request(lock))

    assert error.kind == kind
    assert not provisioned.layout.venvs.exists()


def test_a_missing_python_is_refused_by_name(provisioned, workshop):
    """
    None is downloaded, and nothing remains on disk.
    """
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)

    error = provisioned.refusal(build_request(lock, python="3.2"))

    assert error.kind == "CommandFailed"
    assert "3.2" in error.why
    assert not provisioned.layout.venvs.exists()


@pytest.mark.parametrize(("pin", "is_built"), [("===", True), ("==", False)])
def test_a_wheel_of_another_build_may_be_beside_it(provisioned, workshop, pin, is_built):
    """
    A host that used another row has both wheels; pinned with ===, the right one is installed.

    Negative control: with ==, uv takes the one that names its build, and refuses its hash.
    """
    lock = workshop.lock
    make_lock(workshop.wheels, version="1.0+cpu")
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)
    text = lock.text.replace("==", pin)
    digest = hashlib.sha256(text.encode()).hexdigest()

    request = build_request(lock, lock=text, digest=digest)
    if is_built:
        assert provisioned.call(request).built is True
    else:
        assert provisioned.refusal(request).kind == "CommandFailed"
    packages = provisioned.layout.venvs.glob(f"{digest}/lib/python*/site-packages/*.dist-info")
    assert [path.name for path in packages] == ["tinydep-1.0.dist-info"] * is_built


def test_a_triton_that_cannot_be_imported_is_refused(provisioned, tmp_path):
    """
    A GPU row needs it, so the build of the venv imports it; the error must not wait for a release.
    """
    lock = make_lock(tmp_path / "wheels", name="triton")  # one module, and no language in it
    shutil.copytree(tmp_path / "wheels", provisioned.layout.wheelhouse)

    error = provisioned.refusal(build_request(lock))

    assert error.kind == "CommandFailed"
    assert "triton.language" in error.why


def test_an_environment_of_an_older_host_program_is_built_again(provisioned, workshop):
    """
    It has no record of its files, and all users may read them.
    """
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)
    provisioned.call(build_request(lock))
    venv = provisioned.layout.venvs / lock.digest
    for path in [venv, *venv.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    (venv / ".files").unlink()

    assert provisioned.call(build_request(lock)).built is True

    assert venv.stat().st_mode & 0o777 == 0o750
    modes = {p.stat().st_mode & 0o777 for p in venv.rglob("*") if not p.is_symlink()}
    assert modes == {0o750, 0o640}


def test_what_a_killed_build_left_is_not_taken_over(provisioned, workshop):
    """
    A tree too deep to take over would refuse every later staging of the host.
    """
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)
    left = provisioned.layout.venvs / f".tmp-{lock.digest}"
    left.joinpath(*["d"] * 90).mkdir(parents=True)

    venvs.close_older(provisioned.system)

    assert provisioned.call(build_request(lock)).built is True
    assert not left.exists()


@pytest.fixture
def built(provisioned, workshop):
    """
    A host with the environment of the workshop's lock, its path, and the request to build it.
    """
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)
    request = build_request(workshop.lock)
    assert provisioned.call(request).built is True
    return provisioned, provisioned.layout.venvs / workshop.lock.digest, request


def venv_facts(host, venv, *, deep=False):
    path = f"/{venv.relative_to(host.layout.root)}"
    return host.call(FactQuery(venvs=(path,), deep=deep)).venvs[path]


GOOD = VenvFacts(is_recorded=True, altered=(), altered_count=0, problem=None)


def module_of(venv):
    [path] = venv.glob("lib/python*/site-packages/tinydep.py")
    return path


@pytest.mark.parametrize(
    "spoil",
    [
        lambda venv: module_of(venv).write_text("raise SystemExit\n"),
        lambda venv: module_of(venv).unlink(),
        lambda venv: module_of(venv).chmod(0o666),
        lambda venv: module_of(venv).with_name("sitecustomize.py").touch(),
        lambda venv: (venv / "pyvenv.cfg").write_text("home = /tmp\n"),
        lambda venv: (venv / ".files").unlink(),
        lambda venv: ((venv / "bin/python").unlink(), (venv / "bin/python").symlink_to("/bin/sh")),
    ],
)
def test_an_altered_environment_is_found_and_built_again(built, spoil):
    """
    The old one is in its place until the new one is whole.
    """
    host, venv, request = built
    assert venv_facts(host, venv) == venv_facts(host, venv, deep=True) == GOOD
    spoil(venv)
    assert venv_facts(host, venv) != GOOD

    assert host.call(request).built is True

    assert venv_facts(host, venv, deep=True) == GOOD
    assert host.call(request).built is False
    assert [path.name for path in host.layout.venvs.iterdir()] == [venv.name]


def test_an_environment_whose_python_is_gone_is_found(built, monkeypatch):
    """
    Every file of it is as it was built: what it leads to is not.
    """
    host, venv, _ = built
    real = venvs.python_problem
    monkeypatch.setattr("deploy.host.facts.python_problem", lambda system, path: "it is gone")
    assert venv_facts(host, venv).problem == "it is gone"
    assert real(host.system, venv / "bin/python") is None


def test_a_failed_rebuild_leaves_the_old_environment(built):
    """
    Slots run from it.
    """
    host, venv, request = built
    (venv / ".files").unlink()
    for wheel in host.layout.wheelhouse.iterdir():
        wheel.unlink()
    assert host.refusal(request).kind == "BundleTruncated"
    assert module_of(venv).exists()


def test_modes_of_the_top_are_mended_without_a_rebuild(built):
    host, venv, request = built
    venv.chmod(0o2770)
    assert host.call(request).built is False
    assert venv.stat().st_mode & 0o7777 == 0o750


@pytest.mark.parametrize("planted", [".lock", ".complete"])
def test_a_draft_that_became_a_link_is_not_followed(provisioned, workshop, monkeypatch, planted):
    """
    The build user owns the directory around it, and may exchange it for a link.
    """
    outside = provisioned.root / "outside"
    outside.mkdir()
    (outside / planted).write_text("kept")
    real = venvs._import

    def importing(system, area, draft, wheels):
        real(system, area, draft, wheels)
        draft.rename(area / "aside")
        draft.symlink_to(outside)

    monkeypatch.setattr(venvs, "_import", importing)
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)

    error = provisioned.refusal(build_request(workshop.lock))

    assert error.kind == "BundleTampered"
    assert (outside / planted).read_text() == "kept"
    assert list(provisioned.layout.venvs.iterdir()) == []


def test_a_planted_mark_of_completion_does_not_count(provisioned, workshop, monkeypatch):
    """
    It names the wheels that `retire` keeps.
    """
    real = venvs._import

    def importing(system, area, draft, wheels):
        real(system, area, draft, wheels)
        (draft / ".complete").write_text('["../../evil"]')

    monkeypatch.setattr(venvs, "_import", importing)
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)

    provisioned.call(build_request(lock))

    venv = provisioned.layout.venvs / lock.digest
    assert venvs.wheels_of(venv) == {wheel.file for wheel in lock.wheels}


@pytest.mark.parametrize("is_memory", [True, False])
def test_a_build_that_the_kernel_killed_does_not_blame_the_lock(
    provisioned, workshop, monkeypatch, is_memory
):
    """
    uv has said what it was at, and nothing of its end; systemd has.
    """
    lock, system = workshop.lock, provisioned.system
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)
    system.log = ["Failed with result 'oom-kill'." if is_memory else "Failed."]
    said = ProgramResult(1, "", "Resolved 20 packages in 9ms")
    monkeypatch.setattr(system, "_systemd_run", lambda words, timeout_s: said)

    error = provisioned.refusal(build_request(lock))

    if is_memory:
        assert "memory ended" in error.what
        assert "4 GiB" in error.why
        assert "lock" not in error.fix
    else:
        assert (error.why, "lock" in error.fix) == ("Resolved 20 packages in 9ms", True)
    assert not (provisioned.layout.venvs / lock.digest).exists()
