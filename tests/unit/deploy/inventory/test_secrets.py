import json
import pickle

import pytest

from deploy.errors import InventoryError
from deploy.inventory.schema import Secret
from deploy.inventory.secrets import SecretValue, resolve_secret


def secret_file(tmp_path, content, mode=0o600):
    path = tmp_path / "slipway" / "token"
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(mode)
    return Secret(file=path)


def test_a_secret_comes_from_the_environment_or_from_a_file(tmp_path):
    """
    The last line break of a file is not part of the secret.
    """
    of_env = resolve_secret(Secret(env="T"), {"T": " hunter2"})
    of_file = resolve_secret(secret_file(tmp_path, b"hunter2\n"), {})

    assert of_env.reveal() == " hunter2"
    assert of_file.reveal() == "hunter2"


def test_a_secret_is_never_printed_or_stored():
    """
    Printing and formatting give `[hidden]`; JSON and pickle refuse it.
    """
    value = SecretValue("hunter2")

    shown = [repr(value), str(value), f"{value}", f"{value:>20}", "%s" % value, repr([value])]  # noqa: UP031
    assert all("hunter2" not in text and "[hidden]" in text for text in shown)
    with pytest.raises(TypeError):
        json.dumps(value)
    with pytest.raises(TypeError):
        pickle.dumps(value)


def test_reveal_returns_the_text():
    """
    Negative control: the value has the text, so the test above could find it.
    """
    assert "hunter2" in f"{SecretValue('hunter2').reveal()}"


@pytest.mark.parametrize(("env", "state"), [({}, "not set"), ({"TOKEN": ""}, "empty")])
def test_a_variable_without_a_value_is_named(env, state):
    """
    The error has the secret's name, and says whether the variable is unset or empty.
    """
    with pytest.raises(InventoryError) as caught:
        resolve_secret(Secret(env="TOKEN"), env, name="api")
    assert caught.value.what == "secrets.api: has no value"
    assert f"TOKEN is {state}" in caught.value.why


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o610])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    """
    The mode is at most 0600.  The error has the remedy, and not the secret.
    """
    with pytest.raises(InventoryError, match="other users may read") as caught:
        resolve_secret(secret_file(tmp_path, b"hunter2", mode), {})
    assert "chmod 600" in caught.value.fix
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_a_file_without_text_is_refused(tmp_path, content):
    """
    An empty file is not an empty secret.
    """
    with pytest.raises(InventoryError, match="contains no text"):
        resolve_secret(secret_file(tmp_path, content), {})


@pytest.mark.parametrize("content", [b"a\nB=c", b"a\x00b", b"a\n\n", b"a\x7f"])
def test_a_secret_is_one_line(tmp_path, content):
    """
    A second line would be another variable in the environment file on the host.
    """
    with pytest.raises(InventoryError, match="more than one line") as caught:
        resolve_secret(secret_file(tmp_path, content), {})
    assert "B=c" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    """
    The path is in the message.
    """
    with pytest.raises(InventoryError) as caught:
        resolve_secret(Secret(file=tmp_path / "slipway-none"), {}, name="api")
    assert f"{tmp_path}/slipway-none cannot be read" in caught.value.what
    assert "No such file" in caught.value.why


@pytest.mark.parametrize(
    "name", [".vault-token", ".config/other/token", ".config/link/token", "slipway-link", "token"]
)
def test_a_private_file_of_another_program_is_refused(tmp_path, monkeypatch, name):
    """
    A fleet file that somebody else wrote would send it to the hosts that it names.
    """
    home = tmp_path / "slipway"  # of a user with this name
    for folder in (".config/other", ".config/slipway"):
        (home / folder).mkdir(parents=True)
    for file in (".vault-token", ".config/other/token", "token"):
        (home / file).write_text("hunter2")
        (home / file).chmod(0o600)
    (home / ".config/link").symlink_to(home / ".config/other")
    (home / "slipway-link").symlink_to(home / ".vault-token")
    monkeypatch.setenv("HOME", str(home))

    with pytest.raises(InventoryError) as caught:
        resolve_secret(Secret(file=home / name), {})
    assert "not a file for secrets of slipway" in caught.value.what
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", [".config/slipway/token", "slipway-token", "slipway.d/token"])
def test_a_file_that_is_named_for_slipway_is_read(tmp_path, name):
    """
    Negative control: by its own name, or by that of its directory.
    """
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("hunter2")
    path.chmod(0o600)
    assert resolve_secret(Secret(file=path), {}).reveal() == "hunter2"
