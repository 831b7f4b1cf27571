"""
venv.build, with the real uv and a wheel of one module.
"""

import shutil

import pytest

from tests.unit.deploy.remote.staged import damage


def as_json(lock):
    return [{"file": w.file, "sha256": w.sha256, "size": w.size} for w in lock.wheels]


def test_provisioning_builds_a_venv_without_a_lease(provisioned, workshop):
    """
    It adds what nobody uses yet; the second time it is there.
    """
    provisioned.fence = None
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)
    args = {
        "lock": lock.text,
        "digest": lock.digest,
        "python": lock.python,
        "wheels": as_json(lock),
    }

    assert provisioned.call("venv.build", **args)["built"] is True
    assert provisioned.call("venv.build", **args) == {"built": False, "took_s": 0.0}


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda path: path.write_bytes(damage(path.read_bytes())), "BundleTampered"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "BundleTruncated"),
        (lambda path: path.unlink(), "BundleTruncated"),
    ],
)
def test_a_venv_is_built_of_the_locked_wheels_alone(provisioned, workshop, spoil, kind):
    """
    A wheel that is not the locked one is refused, and no venv is left.
    """
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)
    spoil(provisioned.layout.wheelhouse / lock.wheels[0].file)

    error = provisioned.answer(
        "venv.build",
        {"lock": lock.text, "digest": lock.digest, "python": lock.python, "wheels": as_json(lock)},
    )["error"]

    assert error["kind"] == kind
    assert not provisioned.layout.venvs.exists()


def test_a_python_that_is_not_there_is_refused_in_uvs_words(provisioned, workshop):
    """
    Nothing is downloaded instead, and nothing is left.
    """
    lock = workshop.lock
    shutil.copytree(workshop.wheels, provisioned.layout.wheelhouse)

    error = provisioned.answer(
        "venv.build",
        {"lock": lock.text, "digest": lock.digest, "python": "3.2", "wheels": as_json(lock)},
    )["error"]

    assert error["kind"] == "CommandFailed"
    assert "3.2" in error["why"]
    assert list(provisioned.layout.venvs.iterdir()) == []
