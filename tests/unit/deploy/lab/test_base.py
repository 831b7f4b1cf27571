from pathlib import Path

import pytest

from deploy.lab import base
from deploy.lab.base import DebootstrapStages, recipe_digest
from deploy.lab.config import LabConfig
from deploy.lab.sources import Sources


def test_another_recipe_is_another_tree(monkeypatch):
    """
    The digest depends on the architecture, the suite and each package, and on nothing else.
    """
    first = recipe_digest("amd64", "bookworm")

    assert first == recipe_digest("amd64", "bookworm")
    assert first != recipe_digest("arm64", "bookworm")
    assert first != recipe_digest("amd64", "trixie")
    monkeypatch.setattr(base, "PACKAGES", (*base.PACKAGES, "vim"))
    assert first != recipe_digest("amd64", "bookworm")


def test_the_base_has_nothing_that_provisioning_brings():
    """
    A lab host is as bare as a rented one.
    """
    assert not {"haproxy", "python3-venv", "python3-pip", "uv"} & set(base.PACKAGES)


@pytest.mark.parametrize(
    ("suite", "keyring", "told", "mirror_and_script"),
    [
        ("trixie", "debian-archive-keyring.gpg", "Debian 13", []),
        ("noble", "ubuntu-archive-keyring.gpg", "Ubuntu 24.04", ["", "gutsy"]),
    ],
)
def test_the_tree_has_the_suite_of_the_lab(
    monkeypatch, tmp_path, suite, keyring, told, mirror_and_script
):
    """
    It is checked with the keys of its own archive.  An older debootstrap has no script for noble.
    """
    calls, reported = [], []

    def follow(argv, **_):
        calls.append(argv)

    monkeypatch.setattr(base, "follow", follow)
    monkeypatch.setattr(base, "_finish", lambda tree: None)
    config = LabConfig(tmp_path / "lab", tmp_path, suite=suite)
    monkeypatch.setattr(base, "_SCRIPTS", tmp_path)
    (tmp_path / "trixie").touch()
    sources = Sources(None, None, "", "", "")
    base._build(config, sources, tmp_path / "base", now=lambda: 0.0, progress=reported.append)

    [argv] = calls
    assert f"--keyring=/usr/share/keyrings/{keyring}" in argv
    assert argv[argv.index(suite) :] == [suite, argv[argv.index(suite) + 1], *mirror_and_script]
    assert told in reported[0]


def test_each_stage_of_a_build_is_reported_once():
    """
    debootstrap prints a line for every package.
    """
    reported = []
    stages = DebootstrapStages(reported.append)

    for line in [
        "I: Retrieving InRelease ",
        "I: Retrieving apt 2.6.1",
        "I: Extracting apt...",
        "W: Retrieving nothing",
        "I: Configuring apt...",
    ]:
        stages.on_line(line)

    assert reported == [
        "base tree: retrieving packages",
        "base tree: extracting packages",
        "base tree: configuring packages",
    ]


def test_a_password_of_a_mirror_is_in_no_argument(monkeypatch, tmp_path):
    """
    wget of debootstrap reads it from a private file; a mirror without one is passed as it is.
    """
    calls = []

    def follow(argv, *, env, **_):
        netrc = Path(env["HOME"]) / ".netrc" if "HOME" in env else None
        mode = netrc and netrc.stat().st_mode & 0o777
        calls.append((argv[-1], netrc and netrc.read_text(), mode))
        Path(argv[-2]).joinpath("etc").mkdir()

    monkeypatch.setattr(base, "follow", follow)
    monkeypatch.setattr(base, "_finish", lambda tree: None)
    monkeypatch.setattr(base, "_SCRIPTS", tmp_path)
    (tmp_path / "bookworm").touch()
    config = LabConfig(tmp_path / "lab", tmp_path)
    for number, mirror in enumerate(["http://ada:s3%40cret@mirror.test:80/debian", "http://m/"]):
        sources = Sources(mirror, None, "", "", "")
        base._build(
            config, sources, tmp_path / f"base-{number}", now=lambda: 0.0, progress=lambda _: None
        )

    assert calls == [
        (
            "http://mirror.test:80/debian",
            "machine mirror.test login ada password s3@cret\n",
            0o600,
        ),
        ("http://m/", None, None),
    ]
