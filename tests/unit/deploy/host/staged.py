"""
Stages real bundles on a host in a temporary directory: real signatures, real uv, real files.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from deploy.bundle.send import stage
from deploy.host.bundle.staging import PART
from deploy.host.protocol import HostError
from tests.unit.deploy.bundle.builders import FLEET

UV = Path(sys.prefix) / "bin" / "uv"


def provision(host, keys):
    host.lease(ttl_s=3600)
    host.system.real.add("ssh-keygen")
    host.layout.bin.mkdir(parents=True, exist_ok=True)
    host.layout.uv.symlink_to(UV)
    host.layout.etc.mkdir(parents=True)
    host.layout.host_config.write_text(json.dumps({"fleet": FLEET, "locks": []}))
    shutil.copyfile(keys[1], host.layout.allowed_signers)


class Link:
    """
    Client and transport of a host; `change` replaces the content of an upload, None cuts it off.
    """

    def __init__(self, host):
        self.host = "n1"
        self._host = host
        self.transport = self
        self.change = lambda name, data: data

    def call(self, request, *, timeout_s):
        assert timeout_s > 0
        return self._host.call(request)

    def put(self, local, remote, *, timeout_s, mode=0o644):
        name = Path(remote).name.removesuffix(PART)
        data = self.change(name, local.read_bytes())
        if data is None:
            raise ConnectionError(name)
        (self._host.root / remote.lstrip("/")).write_bytes(data)


def send(host, bundle, workshop, change=lambda name, data: data):
    link = Link(host)
    link.change = change
    return stage(bundle, client=link, wheels=workshop.wheels)


def refusal(host, bundle, workshop, change=lambda name, data: data):
    with pytest.raises(HostError) as caught:
        send(host, bundle, workshop, change)
    return caught.value


def placed(host):
    """
    Return the entries of the directories that releases start from.
    """
    layout = host.layout
    directories = (layout.releases, layout.models, layout.blobs, layout.venvs, layout.wheelhouse)
    return sorted(
        p.name for d in directories if d.is_dir() for p in d.iterdir() if p.name != "blobs"
    )


def assert_whole(release, bundle):
    for file in bundle.manifest.files:
        assert (release / file.path).stat().st_size == file.size
    for file in bundle.manifest.model.files:
        assert (release / "model" / file.path).stat().st_size == file.size
    assert (release / "venv" / ".complete").is_file()


def damage(data):
    return data[:-1] + bytes([data[-1] ^ 1])
