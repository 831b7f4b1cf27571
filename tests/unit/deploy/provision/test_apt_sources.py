"""
The sources of a fleet file, read by apt itself.
"""

import os
import shutil
import subprocess

import pytest

from deploy.inventory.names import parse_archive, parse_proxy
from deploy.inventory.schema import AptSource, Mirrors
from deploy.provision import base
from deploy.provision.apt_sources import AptSources
from tests.unit.deploy.inventory.payloads import PAYLOADS
from tests.unit.deploy.provision.builders import DEBIAN

URIS = (
    "https://[2001:db8::1]:8443/debian",
    "http://m.example.com/debian-security/",
    "http://192.0.2.1:80/a~b/c+d",
)


def accepted(parse):
    """
    Return the payloads that *parse* accepts.
    """
    found = []
    for payload in PAYLOADS:
        try:
            found.append(parse(payload))
        except ValueError:
            continue
    return found


def rendered(mirrors):
    """
    Return the `.sources` file of a host with Debian 12.
    """
    return AptSources(sources=base.archives(mirrors)).text(DEBIAN)


def apt_reads(folder, text):
    """
    Return what apt would download for a `.sources` file, without its network.
    """
    program = shutil.which("apt-get", path=os.environ["PATH"] + ":/usr/bin")
    if program is None:
        pytest.skip("apt-get is not installed here")
    (folder / "etc/apt/sources.list.d").mkdir(parents=True)
    (folder / "etc/apt/sources.list.d/slipway.sources").write_text(text)
    (folder / "state/lists/partial").mkdir(parents=True)
    options = (f"Dir={folder}", f"Dir::State={folder}/state", f"Dir::Cache={folder}/cache",
               "Dir::State::status=/dev/null", "APT::Architecture=amd64")  # fmt: skip
    argv = [program, *(word for option in options for word in ("-o", option))]
    done = subprocess.run(
        [*argv, "--print-uris", "update"], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_apt_reads_the_archives_suites_and_components(tmp_path):
    """
    Each archive with each suite and component, and nothing else.
    """
    uris = (*URIS, *accepted(parse_archive))
    source = AptSource(uris=uris, suites=("bookworm", "b-sec/updates"), components=("main", "x"))
    code, out, err = apt_reads(tmp_path, rendered(Mirrors(apt=(source,))))
    assert (code, err) == (0, "")
    releases = {line.split("'")[1] for line in out.splitlines() if "InRelease" in line}
    wanted = {f"{uri.rstrip('/')}/dists/{s}/InRelease" for uri in uris for s in source.suites}
    assert releases == wanted
    packages = {line.split("'")[1] for line in out.splitlines() if "binary-amd64" in line}
    assert {url.rsplit("/", 3)[1] for url in packages} == {"main", "x"}


def test_apt_would_notice(tmp_path):
    """
    Negative control: a value with a line end is a field of its own, which apt obeys.
    """
    text = "Types: deb\nURIs: http://a.example/d\nSuites: bookworm\nEnabled: no\nComponents: main\n"
    code, out, _ = apt_reads(tmp_path, text)
    assert (code, out) == (0, "")


def test_no_payload_is_a_proxy_with_more_than_host_and_port():
    """
    What is accepted has no quote, semicolon, space or credentials.
    """
    found = accepted(parse_proxy)
    assert found
    assert not any(set(url) & set("\"'; @{}%\\") for url in found)
