import dataclasses
import json
import re
from pathlib import Path

import pytest

from deploy.host.bundle.manifest import canonical, parse_manifest
from deploy.host.protocol import HostError

RECORDED = "02aa0b93a0d2ad3d10b998f1b93ae1893d526a8f2d76c1ce7fffcb3ea2478f4f"
RECORDED_OLD = "d4c1e1ca3b4c461906ffb5fd940c03dc196fb3f9fcd49d2ca72e925aecf5878f"
RECORDED_ARCHIVE_BYTES = 10240


def test_the_digest_of_a_bundle_is_stable_across_versions(workshop):
    """
    Recorded from earlier versions: hosts store bundles by this digest, and keep those in the old
    format, which had no fleet and no counter.
    """
    workshop.lock = dataclasses.replace(workshop.lock, python="3.11")

    bundle = workshop.build()
    old = dataclasses.replace(bundle.manifest, format=1, fleet="", counter=0)

    assert bundle.digest == bundle.manifest.digest == RECORDED
    assert old.digest == RECORDED_OLD
    assert parse_manifest(old.to_bytes()) == old
    assert bundle.archive_path.stat().st_size == RECORDED_ARCHIVE_BYTES


def test_another_byte_is_another_bundle(workshop):
    """
    Negative control: the digest above depends on every input.
    """
    workshop.lock = dataclasses.replace(workshop.lock, python="3.11")
    (workshop.runtime / "__main__.py").write_text("print('other')\n")

    assert workshop.build().digest != RECORDED


def test_a_manifest_round_trips(workshop):
    """
    Its encoding is canonical.
    """
    bundle = workshop.build()
    data = bundle.manifest_path.read_bytes()

    assert parse_manifest(data) == bundle.manifest
    assert parse_manifest(data).to_bytes() == data


def test_it_has_the_documented_keys(workshop):
    """
    docs/reference/bundle.md lists them.
    """
    document = json.loads(workshop.build().manifest_path.read_bytes())

    assert sorted(document) == [
        "counter", "files", "fleet", "format", "identity", "lock", "model", "model_name", "row",
        "version",
    ]  # fmt: skip
    assert sorted(document["lock"]) == ["digest", "python", "wheels"]
    assert sorted(document["model"]) == ["digest", "files"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 3),
        (("surprise",), 1),
        (("version",), "v 1"),
        (("files", 0, "path"), "../config.yml"),
        (("files", 0, "mode"), "4755"),
        (("files", 0, "sha256"), "x" * 64),
        (("model", "files", 0, "size"), -1),
        (("lock", "wheels", 0, "file"), "/tmp/x.whl"),
    ],
)
def test_an_invalid_manifest_is_refused(workshop, path, value):
    """
    Unknown keys, wrong types, and paths that leave the bundle.
    """
    document = workshop.build().manifest.document()
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value

    with pytest.raises(HostError) as caught:
        parse_manifest(canonical(document))

    assert caught.value.kind == ("PreconditionError" if path == ("format",) else "BundleTampered")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["model"]["files"].append(d["model"]["files"][0]),
        lambda d: d["files"].append(d["files"][0]),
        lambda d: d["model"].update(digest="0" * 64),
        lambda d: d["lock"].update(digest="0" * 64),
        lambda d: d["lock"].update(python="python3.11"),
        lambda d: d["files"][0].update(path="model/x"),
        lambda d: d["files"][0].update(path="x" * 101),
        lambda d: d.pop("identity"),
        lambda d: d.pop("fleet"),
        lambda d: d.update(counter=0),
        lambda d: d.update(format=1),
        lambda d: d["files"][0].update(size=1 << 30),
        lambda d: d["lock"]["wheels"][0].update(file="x.tar.gz"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(workshop, change):
    """
    Digests that do not match, duplicate files, reserved names.
    """
    document = workshop.build().manifest.document()
    parse_manifest(canonical(document))
    change(document)

    with pytest.raises(HostError) as caught:
        parse_manifest(canonical(document))

    assert caught.value.kind == "BundleTampered"


def test_a_newer_format_is_named_as_such(workshop):
    """
    An old host program says that it is too old.
    """
    document = {**workshop.build().manifest.document(), "format": 3}

    with pytest.raises(HostError) as caught:
        parse_manifest(canonical(document))

    assert (caught.value.kind, "format 3" in caught.value.why) == ("PreconditionError", True)


def test_the_page_lists_every_key_of_the_manifest(workshop):
    """
    docs/reference/bundle.md documents the format.
    """
    page = (Path(__file__).parents[4] / "docs" / "reference" / "bundle.md").read_text()
    table = page[page.index("## manifest.json") : page.index("Sizes are in bytes")]

    listed = re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)

    assert sorted(listed) == sorted(workshop.build().manifest.document())
