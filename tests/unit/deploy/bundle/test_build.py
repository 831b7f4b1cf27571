import hashlib
import os
import shutil
import subprocess

import pytest
import yaml
from pydantic_core import PydanticUndefined

from deploy.bundle.build import OVERRIDES
from deploy.errors import ModelPathError, PreconditionError, UsageError
from runtime.server.config import RuntimeConfig
from tests.unit.deploy.bundle.builders import Workshop


def contents(bundle):
    return {p.name: p.read_bytes() for p in bundle.directory.iterdir()}


def archived(bundle, name):
    argv = ["tar", "-xOf", bundle.archive_path, name]
    return subprocess.run(argv, capture_output=True, check=True).stdout


def test_the_same_inputs_are_the_same_bytes(tmp_path):
    """
    Another directory, another umask, other times and another order of files: the same bundle.
    """
    first = Workshop(tmp_path / "a").build()
    old = os.umask(0o077)
    try:
        elsewhere = Workshop(tmp_path / "b" / "deeper")
        for path in sorted(elsewhere.root.rglob("*"), reverse=True):
            os.utime(path, (1, 1))
        second = elsewhere.build()
    finally:
        os.umask(old)

    assert second.digest == first.digest
    assert contents(second) == contents(first)
    assert second.digest == hashlib.sha256(first.manifest_path.read_bytes()).hexdigest()


def change_weights(workshop):
    path = workshop.model / "model.safetensors"
    data = path.read_bytes()
    path.unlink()  # its contents are linked into the store
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def change_code(workshop):
    (workshop.runtime / "__main__.py").write_text("print('other')\n")


def change_golden(workshop):
    path = workshop.model / "golden.jsonl"
    path.write_text(path.read_text().replace("rises", "sets"))


@pytest.mark.parametrize("change", [change_weights, change_code, change_golden])
def test_one_byte_makes_another_bundle(workshop, change):
    """
    Negative control: what is in it is in its name.
    """
    before = workshop.build().digest
    change(workshop)

    assert workshop.build().digest != before


@pytest.mark.parametrize("more", [{"version": "v2"}, {"overrides": {"threads": 2}}])
def test_another_version_or_setting_makes_another_bundle(workshop, more):
    """
    So are version and configuration.
    """
    assert workshop.build(**more).digest != workshop.build().digest


def test_the_archive_is_one_that_tar_reads(workshop):
    """
    Code, configuration, golden prompts and lock; nothing of the lab, no bytecode.
    """
    bundle = workshop.build()
    argv = ["tar", "-tvf", bundle.archive_path]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()

    assert [line.split()[-1] for line in listed] == [
        "config.yml", "golden.jsonl", "requirements.lock",
        "runtime/__init__.py", "runtime/__main__.py", "runtime/models/__init__.py",
    ]  # fmt: skip
    assert all(line.startswith("-rw-r--r-- 0/0") for line in listed)
    assert archived(bundle, "requirements.lock") == workshop.lock.text.encode()


def test_the_configuration_names_version_and_model(workshop):
    """
    And what the release sets for itself.
    """
    bundle = workshop.build(overrides={"max_wait_s": 0.01})

    assert yaml.safe_load(archived(bundle, "config.yml")) == {
        "version": "v1",
        "model_name": "glm4",
        "max_wait_s": 0.01,
    }
    assert bundle.manifest.model_name == "glm4"


def test_a_release_may_set_what_the_runtime_knows():
    """
    The list of settings is that of the runtime.
    """
    assert {*OVERRIDES, "version"} == set(RuntimeConfig.model_fields)
    assert RuntimeConfig.model_fields["version"].default is PydanticUndefined


@pytest.mark.parametrize("version", ["", "v 1", "-1", "v1/../2", "v" * 65, "v1\n"])
def test_an_impossible_version_is_refused(workshop, version):
    """
    It becomes a metric label and a header.
    """
    with pytest.raises(UsageError, match="version"):
        workshop.build(version)


def test_a_setting_that_the_runtime_does_not_have_is_refused(workshop):
    """
    With the nearest one there is.
    """
    with pytest.raises(UsageError) as caught:
        workshop.build(overrides={"thread": 4})

    assert "threads" in caught.value.fix


def test_nothing_is_stored_of_what_is_no_model(workshop):
    """
    The model is looked at before a byte is copied.
    """
    (workshop.model / "tokenizer.json").unlink()

    with pytest.raises(ModelPathError):
        workshop.build()

    assert not workshop.store.root.exists()


def test_a_checkout_without_runtime_is_refused(workshop):
    """
    A bundle without code serves nothing.
    """
    shutil.rmtree(workshop.runtime)

    with pytest.raises(PreconditionError):
        workshop.build()
