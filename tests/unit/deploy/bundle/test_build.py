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


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    """
    With another directory, umask, times and order of files: the same bundle.
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


def change_template(workshop):
    (workshop.model / "chat_template.jinja").write_text("{{ messages }}")


def change_default(workshop):
    (workshop.model / "generation_config.json").write_text('{"temperature": 0.6}')


@pytest.mark.parametrize(
    "change", [change_weights, change_code, change_golden, change_template, change_default]
)
def test_one_byte_makes_another_bundle(workshop, change):
    """
    Negative control: its digest depends on the content.
    """
    before = workshop.build().digest
    change(workshop)

    assert workshop.build().digest != before


@pytest.mark.parametrize("more", [{"version": "v2"}, {"overrides": {"threads": 2}}])
def test_another_version_or_setting_makes_another_bundle(workshop, more):
    """
    The digest also depends on version and configuration.
    """
    assert workshop.build(**more).digest != workshop.build().digest


def test_tar_reads_the_archive(workshop):
    """
    Code, configuration, golden prompts and lock; no lab files and no bytecode.
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
    And the settings of the release.
    """
    bundle = workshop.build(overrides={"max_wait_s": 0.01})

    assert yaml.safe_load(archived(bundle, "config.yml")) == {
        "version": "v1",
        "model_name": "glm4",
        "max_wait_s": 0.01,
    }
    assert bundle.manifest.model_name == "glm4"


def test_a_release_may_set_the_options_of_the_runtime():
    """
    The runtime defines the list of settings; limits and logs are the host's alone.
    """
    of_host = {"log_level", "max_body_bytes", "request_log"}
    assert {*OVERRIDES, "version", *of_host} == set(RuntimeConfig.model_fields)
    assert not of_host & set(OVERRIDES)
    assert RuntimeConfig.model_fields["version"].default is PydanticUndefined


@pytest.mark.parametrize("version", ["", "v 1", "-1", "v1/../2", "v" * 65, "v1\n"])
def test_an_invalid_version_is_refused(workshop, version):
    """
    It becomes a metric label and a header.
    """
    with pytest.raises(UsageError, match="version"):
        workshop.build(version)


def test_an_unknown_setting_is_refused(workshop):
    """
    The error suggests the nearest one.
    """
    with pytest.raises(UsageError) as caught:
        workshop.build(overrides={"thread": 4})

    assert "threads" in caught.value.fix


def test_nothing_is_stored_for_an_invalid_model(workshop):
    """
    The model is checked before the first byte is copied.
    """
    (workshop.model / "tokenizer.json").unlink()

    with pytest.raises(ModelPathError):
        workshop.build()

    assert not workshop.store.root.exists()


def test_a_checkout_without_runtime_is_refused(workshop):
    """
    A bundle needs the code of the runtime.
    """
    shutil.rmtree(workshop.runtime)

    with pytest.raises(PreconditionError):
        workshop.build()
