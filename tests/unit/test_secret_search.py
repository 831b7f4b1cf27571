import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import secret_search
from tests.secret_search import PIECE, search

TOKEN, HOST = "sk-slipway-a-secret", "the-host's-own"
SECRETS = {"ann": {"text": TOKEN}, "host": {"file": "/etc/slipway/host_token"}}
SINCE_S = 1_000_000_000


@pytest.fixture
def root(tmp_path):
    """
    A host without a secret but where it may be.
    """
    for folder in ("proc/7", "proc/self", "etc/slipway", "opt/slipway"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/slipway/host_token").write_text(f"{HOST}\n")
    (tmp_path / "proc/7/cmdline").write_bytes(b"sh\0-c\0true")
    (tmp_path / "proc/7/environ").write_bytes(b"PATH=/bin\0")
    return tmp_path


def found(root, journal=b"", since_s=SINCE_S):
    places = search(SECRETS, ["/etc", "/opt/slipway"], since_s, root=root, journal=journal)
    return [(name, kind, place.removeprefix(f"{root}/")) for name, kind, place in places]


def test_a_secret_may_be_in_its_own_file_alone(root):
    """
    Links are not followed; other files of the same directory are read.
    """
    (root / "etc/link").symlink_to(root / "etc/slipway/host_token")
    assert found(root) == []

    (root / "etc/slipway/copy").write_text(HOST)
    assert found(root) == [("host", "file", "etc/slipway/copy")]


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("cmdline", "proc/7/cmdline"),
        ("environ", "proc/7/environ"),
        ("file", "etc/passwd"),
        ("file", "opt/slipway/deep/below/it"),
    ],
)
def test_a_planted_secret_is_found(root, kind, place):
    """
    Wherever it is in the file, also where two pieces that are read meet.
    """
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    for before in (0, PIECE - 5, PIECE, PIECE + 1):
        path.write_bytes(b"x" * before + TOKEN.encode())
        assert found(root) == [("ann", kind, place)]


def test_the_journal_is_searched(root):
    assert found(root, journal=f"line\nMESSAGE=key {TOKEN} added".encode()) == [
        ("ann", "journal", "journal")
    ]


def test_files_from_before_the_secret_are_not_read(root):
    """
    A token cannot be in them; reading all of an environment would take minutes.
    """
    (root / "etc/passwd").write_text(TOKEN)
    changed_s = (root / "etc/passwd").stat().st_ctime
    assert found(root, since_s=changed_s) != []
    assert found(root, since_s=changed_s + 1) == []


def test_an_empty_secret_is_an_error(root):
    (root / "etc/slipway/host_token").write_text("\n")
    with pytest.raises(AssertionError, match="everywhere"):
        found(root)


def test_the_program_finds_a_secret_and_not_itself(root, tmp_path_factory):
    """
    Sent as text, as to a host; the journal is that of a program in the place of journalctl.
    """
    programs = tmp_path_factory.mktemp("bin")
    (programs / "journalctl").write_text(f"#!/bin/sh\necho {TOKEN}\n")
    (programs / "journalctl").chmod(0o755)
    (root / "etc/copy").write_text(HOST)
    config = {"secrets": SECRETS, "roots": ["/etc"], "since_s": SINCE_S, "root": str(root)}
    argument = json.dumps(config).encode().hex()
    text = Path(secret_search.__file__).read_text()
    done = subprocess.run(
        [sys.executable, "-I", "-c", text, argument],
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == [
        ["ann", "journal", "journal"],
        ["host", "file", str(root / "etc/copy")],
    ]
    assert TOKEN not in argument
