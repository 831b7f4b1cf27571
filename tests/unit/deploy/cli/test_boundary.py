import errno
import json
import logging
import os
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.cli import boundary
from deploy.cli.boundary import error_boundary, explain
from deploy.errors import InventoryError


def caught(action):
    try:
        action()
    except Exception as error:
        return explain(error)
    raise AssertionError("nothing was raised")


def test_a_dangling_link_is_named_with_its_remedy(tmp_path):
    """
    An editor's lock link in runtime/, met when a bundle is built.
    """
    link = tmp_path / ".#api.py"
    link.symlink_to("user@machine.1234")
    error = caught(link.read_bytes)
    assert error.what == str(link)
    assert "link to nothing" in error.fix


def test_a_full_disk_names_the_file(monkeypatch, tmp_path):
    """
    The operating system does not name it: a write knows only its descriptor.
    """

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def store(path):
        path.write_text("x")

    monkeypatch.setattr(Path, "write_text", full)
    error = caught(lambda: store(tmp_path / "manifest.json"))
    assert error.what == str(tmp_path / "manifest.json")
    assert error.why == "No space left on device"
    assert error.fix.startswith("free space")


def test_a_folder_where_a_file_should_be_is_named(tmp_path):
    error = caught(lambda: tmp_path.open("w"))
    assert (error.what, error.fix) == (str(tmp_path), "name a file, not a folder")


def test_a_missing_program_is_named():
    error = caught(lambda: subprocess.run(["no-such-program"], check=False))
    assert error.what == "no-such-program"
    assert error.fix.startswith("install no-such-program")


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "lock"
    path.write_bytes(b"\xff\xfe")
    assert caught(lambda: path.read_text(encoding="utf-8")).what == f"{path}: is not UTF-8 text"


def test_a_program_that_hangs_is_named():
    error = explain(subprocess.TimeoutExpired(["/usr/bin/ssh", "n1"], 5.0))
    assert (error.what, error.why) == ("ssh: did not end", "it ran longer than 5 s")


def test_the_end_of_the_input_is_explained():
    assert "input ended" in explain(EOFError()).what


def test_an_error_of_ours_stays_as_it_is():
    error = InventoryError("x.yml", why="w", fix="f")
    assert explain(error) is error


def test_anything_else_is_said_to_be_a_defect(tmp_path, monkeypatch, capsys):
    """
    With where it happened; the traceback goes to a file, not to the terminal.
    """
    monkeypatch.setattr(boundary, "_TRACEBACK", tmp_path / ".slipway" / "traceback.txt")
    with pytest.raises(SystemExit) as ended, error_boundary(as_json=False):
        {}["n1"]
    assert ended.value.code == 1
    text = capsys.readouterr().err
    assert "unexpected KeyError" in text
    assert "Traceback" not in text
    assert "KeyError: 'n1'" in (tmp_path / ".slipway" / "traceback.txt").read_text()


def test_debug_prints_the_traceback(monkeypatch, capsys):
    log = logging.getLogger("invoke")
    monkeypatch.setattr(log, "level", logging.DEBUG)
    log.manager._clear_cache()
    try:
        with pytest.raises(SystemExit), error_boundary(as_json=False):
            {}["n1"]
    finally:
        monkeypatch.undo()
        log.manager._clear_cache()
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("as_line", [False, True])
def test_with_json_every_error_is_one_document(tmp_path, monkeypatch, capsys, as_line):
    monkeypatch.setattr(boundary, "_TRACEBACK", tmp_path / "traceback.txt")
    with pytest.raises(SystemExit), error_boundary(as_json=True, as_line=as_line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["kind"] == "DeployError"
    assert (len(out.splitlines()) == 1) is as_line
    assert err == ""


def test_an_interruption_has_its_own_code(capsys):
    with pytest.raises(SystemExit) as ended, error_boundary(as_json=False):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_user_without_a_home_directory_is_told_so(monkeypatch):
    """
    A job for CI whose user has no passwd entry.
    """
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    error = caught(lambda: Path("~/.cache").expanduser())
    assert "home directory" in error.what
    assert error.fix.startswith("export HOME")


def no_entry(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_another_runtime_error_is_a_defect():
    """
    Negative control of the test above.
    """
    assert "a defect of slipway" in explain(RuntimeError("something else")).what


def test_the_traceback_is_private_and_hides_passwords(monkeypatch, tmp_path):
    monkeypatch.setattr(boundary, "_TRACEBACK", tmp_path / ".slipway" / "traceback.txt")
    with pytest.raises(SystemExit), error_boundary(as_json=False):
        raise RuntimeError("cannot reach https://reader:s3cret@index.invalid/simple")
    kept = tmp_path / ".slipway" / "traceback.txt"
    assert "https://[hidden]@index.invalid" in kept.read_text()
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_an_interruption_with_json_is_one_document(capsys):
    with pytest.raises(SystemExit) as ended, error_boundary(as_json=True):
        raise KeyboardInterrupt
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (ended.value.code, error["exit_code"], error["kind"], err) == (
        130,
        130,
        "Interrupted",
        "",
    )


def test_a_second_interruption_ends_the_process_by_itself():
    """
    So that one during the report is no traceback.
    """
    with pytest.raises(SystemExit), error_boundary(as_json=False):
        raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
