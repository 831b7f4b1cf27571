"""
The order of staging, with the real host program.
"""

import json
import shutil

import pytest

from deploy.bundle.send import stage
from deploy.errors import (
    BundleTruncated,
    CommandFailed,
    DiskTooSmall,
    PreconditionError,
    TransportError,
)
from deploy.host import layout
from deploy.host.__main__ import handle
from deploy.host.protocol import LeaseAcquire
from deploy.transport.client import HostClient
from tests.local_host import ANSWER_LOST, LOST_BEFORE, local_hosts
from tests.unit.deploy.bundle.builders import FLEET
from tests.unit.deploy.host.staged import UV


@pytest.fixture
def transport(keys):
    with local_hosts("n1") as hosts:
        transport = hosts["n1"]
        paths = transport.system.layout
        paths.bin.mkdir(parents=True, exist_ok=True)
        paths.uv.symlink_to(UV)
        paths.etc.mkdir(parents=True)
        shutil.copyfile(keys[1], paths.allowed_signers)
        paths.host_config.write_text(json.dumps({"fleet": FLEET}))
        transport.system.real.add("ssh-keygen")
        yield transport


@pytest.fixture
def client(transport):
    client = HostClient(transport, actor="ann", sudo=False)
    client.release = "r1"
    client.fence = client.call(LeaseAcquire("ann", 3600)).fence
    transport.calls.clear()
    return client


@pytest.fixture
def bundle(workshop, keys):
    return workshop.signed(keys[0])


def parts(bundle, workshop):
    yield from (bundle.manifest_path, bundle.signature_path, bundle.archive_path)
    yield from (bundle.blob(f.sha256) for f in bundle.manifest.model.files)
    yield from workshop.wheels.iterdir()


def test_the_manifest_is_sent_first_and_the_weights_last(client, transport, bundle, workshop):
    """
    Each upload ends in .part until the host has verified it.
    """
    lines = []

    sent = stage(bundle, client=client, wheels=workshop.wheels, progress=lines.append)

    incoming = f"{layout.INCOMING}/{bundle.digest}"
    assert transport.verbs() == ["stage.missing", "stage.commit"]
    assert transport.puts[:4] == [
        f"{incoming}/manifest.json.part",
        f"{incoming}/manifest.json.sig.part",
        f"{incoming}/files.tar.part",
        f"{incoming}/wheel-tinydep-1.0-py3-none-any.whl.part",
    ]
    assert [path.split("-")[0] for path in transport.puts[4:]] == [f"{incoming}/blob"] * 3
    assert len(sent.names) == 7
    assert sent.size == sum(path.stat().st_size for path in parts(bundle, workshop))
    assert lines[0].startswith("sending 7 files")
    assert sent.staged.version == "v1"


def test_only_missing_files_are_sent(client, transport, bundle, workshop):
    """
    A host with all files gets only the query and the commit.
    """
    stage(bundle, client=client, wheels=workshop.wheels)
    transport.puts.clear()

    sent = stage(bundle, client=client, wheels=workshop.wheels)

    assert transport.puts == []
    assert (sent.names, sent.size) == ((), 0)


def test_an_interrupted_upload_is_not_committed(client, transport, bundle, workshop):
    """
    The next try sends the rest.
    """
    transport.fail("put", LOST_BEFORE, call=3)
    with pytest.raises(TransportError):
        stage(bundle, client=client, wheels=workshop.wheels)
    assert transport.verbs() == ["stage.missing"]

    assert len(stage(bundle, client=client, wheels=workshop.wheels).names) == 7


def test_a_lost_answer_of_the_commit_is_recovered(client, transport, bundle, workshop):
    """
    The bundle is placed: the second try sends nothing.
    """
    transport.fail("stage.commit", ANSWER_LOST)
    with pytest.raises(TransportError):
        stage(bundle, client=client, wheels=workshop.wheels)

    assert stage(bundle, client=client, wheels=workshop.wheels).names == ()


def test_a_missing_local_file_stops_before_anything_is_sent(client, transport, bundle, workshop):
    """
    A wheel that was deleted from the cache, or a missing signature.
    """
    next(workshop.wheels.iterdir()).unlink()

    with pytest.raises(PreconditionError, match="missing on this machine"):
        stage(bundle, client=client, wheels=workshop.wheels)

    assert (transport.verbs(), transport.puts) == (["stage.missing"], [])


def test_a_refusal_of_the_host_stops_before_anything_is_sent(client, transport, bundle, workshop):
    """
    A disk that is too small is reported at once, with the host's name.
    """
    transport.system.free = 1 << 20

    with pytest.raises(DiskTooSmall, match="n1: "):
        stage(bundle, client=client, wheels=workshop.wheels)

    assert (transport.verbs(), transport.puts) == (["stage.missing"], [])


def test_a_short_upload_is_refused_by_the_host(client, transport, bundle, workshop):
    """
    The controller raises the class of the kind that the host reports.
    """
    bundle.archive_path.write_bytes(bundle.archive_path.read_bytes()[:-1])

    with pytest.raises(BundleTruncated, match="n1: "):
        stage(bundle, client=client, wheels=workshop.wheels)


@pytest.mark.parametrize(
    "foreign",
    [
        {"wheels": ("../../secret",)},
        {"wheels": ("/etc/passwd",)},
        {"wheels": ("other-1.0-py3-none-any.whl",)},
        {"blobs": ("0" * 64,)},
    ],
    ids=str,
)
def test_a_host_that_asks_for_other_files_gets_none(
    client, transport, bundle, workshop, monkeypatch, foreign
):
    """
    Names in its answer only select from the manifest; they are never joined to a local path.
    """
    (workshop.wheels.parent.parent / "secret").write_text("the operator's key")
    (workshop.wheels / "other-1.0-py3-none-any.whl").write_text("of another bundle")

    def answer(system, verb, text):
        line = handle(system, verb, text)
        if verb != "stage.missing":
            return line
        document = json.loads(line)
        document["result"] |= foreign
        return json.dumps(document)

    monkeypatch.setattr("tests.local_host.handle", answer)

    with pytest.raises(CommandFailed, match="n1: the host asks for files that are not in bundle"):
        stage(bundle, client=client, wheels=workshop.wheels)

    assert transport.puts == []


def test_a_host_that_asks_for_parts_of_the_bundle_gets_them(client, transport, bundle, workshop):
    """
    Negative control of the one above.
    """
    stage(bundle, client=client, wheels=workshop.wheels)

    assert len(transport.puts) > 3
