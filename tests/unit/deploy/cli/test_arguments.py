import os

import pytest

from deploy.cli import arguments
from deploy.cli.arguments import (
    fleet_name,
    output_file,
    path_from_caller,
    release_name,
    whole_number,
)
from deploy.errors import UsageError


@pytest.fixture
def caller(tmp_path, monkeypatch):
    """
    The directory that ./inv was called from, which is not the current one.
    """
    folder = tmp_path / "caller"
    folder.mkdir()
    monkeypatch.setenv(arguments.CALLER, str(folder))
    monkeypatch.delenv("INVOKE_FLEET", raising=False)
    return folder


def test_a_path_is_read_from_the_callers_directory(caller):
    assert path_from_caller("models/glm") == caller / "models/glm"
    assert path_from_caller("/models/glm").as_posix() == "/models/glm"


def test_home_is_the_callers(caller, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ops")
    assert path_from_caller("~/glm").as_posix() == "/home/ops/glm"


def test_a_fleet_file_is_read_from_the_callers_directory(caller, monkeypatch):
    """
    In the flag and in INVOKE_FLEET; a path of invoke.yaml starts from the root.
    """
    assert fleet_name("./x.yml", "lab") == str(caller / "x.yml")
    assert fleet_name(None, "fleets/x.yml") == "fleets/x.yml"
    monkeypatch.setenv("INVOKE_FLEET", "x.yml")
    assert fleet_name(None, "x.yml") == str(caller / "x.yml")


def test_a_name_stays_a_name(caller):
    assert fleet_name("gpu-prod", "lab") == "gpu-prod"
    assert fleet_name("", "lab") == "lab"


def test_without_any_fleet_it_is_a_usage_error(caller):
    with pytest.raises(UsageError, match="no fleet is named"):
        fleet_name(None, None)


def test_an_empty_variable_is_an_absent_one():
    env = {"INVOKE_FLEET": "", "SLIPWAY_LAB_DIR": "", "SLIPWAY_CWD": "/x", "OTHER": ""}
    arguments.drop_empty_variables(env)
    assert env == {"SLIPWAY_CWD": "/x", "OTHER": ""}


def test_an_output_file_is_no_folder(caller):
    """
    Said before the work begins, not when its result is written.
    """
    (caller / "reports").mkdir()
    assert output_file("junit", "v.xml") == caller / "v.xml"
    for text in ("reports", "new/"):
        with pytest.raises(UsageError, match="is a folder"):
            output_file("junit", text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pipe.xml", "is no regular file"),  # a writer would wait for a reader
        ("link.xml", "is a link to nothing"),
        ("file/x.xml", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("a\0b", "null"),
        ("loop/x.xml", "symbolic links"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(caller, text, why):
    """
    The results of a whole fleet would be lost at the end.
    """
    os.mkfifo(caller / "pipe.xml")
    (caller / "link.xml").symlink_to("nowhere/x.xml")
    (caller / "loop").symlink_to("loop")
    (caller / "file").write_text("")
    with pytest.raises(UsageError) as caught:
        output_file("junit", text)
    assert why in caught.value.why
    assert "cannot be written" in caught.value.what


@pytest.mark.parametrize("text", ["x.xml", "new/deep/x.xml", "old.xml"])
def test_an_output_is_refused_where_the_user_may_not_write(caller, monkeypatch, text):
    (caller / "old.xml").write_text("")
    assert output_file("junit", text) == caller / text
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match="cannot be written"):
        output_file("junit", text)


def test_an_output_may_be_a_device(caller):
    assert output_file("junit", "/dev/null").as_posix() == "/dev/null"


def test_a_number_is_whole():
    assert whole_number("hosts", "4") == 4
    with pytest.raises(UsageError, match="--hosts many: not a whole number"):
        whole_number("hosts", "many")


@pytest.mark.parametrize("text", ["v1.3.0", "3f9a2c", "20261126T010203-v1.3.0"])
def test_a_release_is_named_by_version_id_or_digest(text):
    """
    As it is printed by inv status.
    """
    assert release_name("to", text) == text


@pytest.mark.parametrize("text", ["", "v1\n", "-oX", "a b", "../v1", "v1;x", "\u0661", "v" * 200])
def test_another_name_of_a_release_is_refused(text):
    """
    Before a host is asked.
    """
    with pytest.raises(UsageError, match="--to"):
        release_name("to", text)
