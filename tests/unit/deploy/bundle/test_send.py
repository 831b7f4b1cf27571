"""
The order of things, with a host that is asked nothing else; test_staging.py has a whole one.
"""

import pytest

from deploy.bundle.send import stage
from deploy.errors import DiskTooSmall, PreconditionError


class Host:
    def __init__(self, lacks, error=None):
        self.lacks, self.error = lacks, error
        self.calls = []

    def call(self, verb, args=None, *, timeout_s):
        self.calls.append(verb)
        if self.error:
            raise self.error
        return {"stage.missing": self.lacks, "stage.commit": {"placed": {}}}[verb]

    def put(self, local, remote, *, timeout_s, mode=0o644):
        assert local.is_file()
        assert timeout_s > 60
        self.calls.append(remote)


def lacking(bundle, /, **more):
    blobs = [f.sha256 for f in bundle.manifest.model.files]
    wheels = [w.file for w in bundle.manifest.lock.wheels]
    whole = {"bundle": True, "venv": True, "blobs": blobs, "wheels": wheels, "incoming": "/in/x"}
    return {**whole, **more}


def send(bundle, host, workshop):
    said = []
    found = stage(bundle, tool=host, transport=host, wheels=workshop.wheels, progress=said.append)
    return found, said


def test_the_manifest_goes_first_and_the_weights_last(workshop, keys):
    """
    Each upload ends in .part: the host has verified none of them.
    """
    bundle = workshop.signed(keys[0])
    host = Host(lacking(bundle))

    found, said = send(bundle, host, workshop)

    assert host.calls[:5] == [
        "stage.missing",
        "/in/x/manifest.json.part",
        "/in/x/manifest.json.sig.part",
        "/in/x/files.tar.part",
        "/in/x/wheel-tinydep-1.0-py3-none-any.whl.part",
    ]
    assert [name.split("-")[0] for name in host.calls[5:8]] == ["/in/x/blob"] * 3
    assert host.calls[8:] == ["stage.commit"]
    assert found["files"] == 7
    assert found["bytes"] == sum(p.stat().st_size for p in paths(bundle, workshop))
    assert said[0].startswith("sending 7 files")


def paths(bundle, workshop):
    yield from (bundle.manifest_path, bundle.signature_path, bundle.archive_path)
    yield from (bundle.blob(f.sha256) for f in bundle.manifest.model.files)
    yield from workshop.wheels.iterdir()


def test_only_what_the_host_lacks_is_sent(workshop, keys):
    """
    A host with everything gets nothing but the question and the check.
    """
    bundle = workshop.signed(keys[0])
    host = Host(lacking(bundle, bundle=False, venv=False, blobs=[], wheels=[]))

    found, _ = send(bundle, host, workshop)

    assert host.calls == ["stage.missing", "stage.commit"]
    assert (found["files"], found["bytes"]) == (0, 0)


def test_a_part_that_is_not_here_stops_before_anything_is_sent(workshop, keys):
    """
    A wheel that was deleted from the cache, or a bundle that nobody signed.
    """
    bundle = workshop.signed(keys[0])
    host = Host(lacking(bundle))
    next(workshop.wheels.iterdir()).unlink()

    with pytest.raises(PreconditionError, match="not on this machine"):
        send(bundle, host, workshop)

    assert host.calls == ["stage.missing"]


def test_a_refusal_of_the_host_stops_before_anything_is_sent(workshop, keys):
    """
    A disk that is too small is told at once.
    """
    bundle = workshop.signed(keys[0])
    host = Host(lacking(bundle), DiskTooSmall("n1: full", why="0 MiB", fix="make room"))

    with pytest.raises(DiskTooSmall):
        send(bundle, host, workshop)

    assert host.calls == ["stage.missing"]
