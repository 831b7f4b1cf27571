"""
Models that attack the machine that bundles them: links, pipes, huge and deep headers.
"""

import json
import os
import struct

import pytest

from deploy.bundle import build as building
from deploy.bundle import store as stores
from deploy.bundle.model import check_model
from deploy.errors import ModelPathError
from tests.unit.deploy.bundle.builders import make_model, make_shards, safetensors

DEEP = b"[" * 200_000
FILES = ("config.json", "tokenizer.json", "model.safetensors", "golden.jsonl")


def refusal(path):
    with pytest.raises(ModelPathError) as caught:
        check_model(path)
    return caught.value


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "models" / "tiny")


def move_out(path):
    """
    Put the content of *path* outside of the model, and return where it is.
    """
    outside = path.parent.parent / f"outside-{path.name}"
    path.rename(outside)
    return outside


@pytest.mark.parametrize("name", [*FILES, "tokenizer_config.json"])
@pytest.mark.parametrize("is_relative", [True, False])
def test_a_link_out_of_the_model_is_refused(model, name, is_relative):
    """
    It could lead to a key of the operator, which the bundle would then carry to every host.
    """
    path = model / name
    if not path.exists():
        path.write_text("{}")
    outside = move_out(path)
    path.symlink_to(f"../{outside.name}" if is_relative else outside)

    error = refusal(model)

    assert name in error.why
    assert "cp -rL" in error.fix


def test_a_directory_that_is_a_link_is_refused(tmp_path):
    """
    Shards may lie in a folder of the model, which must be its own.
    """
    model = make_shards(tmp_path / "m")
    index = json.loads((model / "model.safetensors.index.json").read_text())
    outside = tmp_path / "outside"
    outside.mkdir()
    for tensor, shard in index["weight_map"].items():
        (model / shard).rename(outside / shard)
        index["weight_map"][tensor] = f"sub/{shard}"
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "sub").symlink_to("../outside")

    assert "sub/model-0000" in refusal(model).why or "link" in refusal(model).why


@pytest.mark.parametrize("name", [*FILES, "generation_config.json", "chat_template.jinja"])
def test_a_pipe_is_refused_at_once(model, name):
    """
    Opening it would wait for a writer.
    """
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)

    assert name in refusal(model).why


def test_a_link_that_appears_after_the_check_is_not_followed(workshop, monkeypatch, tmp_path):
    """
    The file is opened once, without links, and what was opened is hashed and stored.
    """
    secret = tmp_path / "id_ed25519"
    secret.write_text("PRIVATE KEY")
    weights = workshop.model / "model.safetensors"

    def check(model):
        names = check_model(model)
        weights.unlink()
        weights.symlink_to(secret)
        return names

    monkeypatch.setattr(building, "check_model", check)

    with pytest.raises(ModelPathError):
        workshop.build()

    stored = [path.read_bytes() for path in (workshop.store.root / "blobs").iterdir()]
    assert b"PRIVATE KEY" not in stored


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed_in(workshop, monkeypatch, tmp_path):
    """
    Between opening and linking another file takes its name: the one that was opened is stored.
    """
    secret = tmp_path / "id_ed25519"
    secret.write_text("PRIVATE KEY")
    weights = workshop.model / "model.safetensors"
    real = stores._take

    def take(descriptor, draft):
        if weights.exists() and os.path.samestat(os.fstat(descriptor), weights.stat()):
            weights.rename(tmp_path / "before")
            secret.rename(weights)
        return real(descriptor, draft)

    monkeypatch.setattr(stores, "_take", take)

    workshop.build()

    stored = [path.read_bytes() for path in (workshop.store.root / "blobs").iterdir()]
    assert b"PRIVATE KEY" not in stored
    assert (tmp_path / "before").read_bytes() in stored


# -- headers


@pytest.mark.parametrize("length", [0, 1, 2**20, 100 << 20, 2**60, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused_unread(model, length):
    """
    Its length is compared with the file before anything of that size is read.
    """
    (model / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")

    assert "model.safetensors" in refusal(model).why


@pytest.mark.parametrize(
    "header",
    [
        DEEP,
        b'{"w":' + DEEP,
        b'{"w": {"data_offsets": [0, Infinity]}}',
        b'{"w": {"data_offsets": [0, NaN]}}',
        b'{"w": {"data_offsets": [0, 1e400]}}',
        b'{"w": {"data_offsets": {}}}',
        b'{"w": []}',
        b"[]",
        b"\xff\xfe",
        b'{"w": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}",
    ],
)
def test_a_header_of_nonsense_is_one_error(model, header):
    """
    Whatever it is, and however deep.
    """
    data = struct.pack("<Q", len(header)) + header + bytes(64)
    (model / "model.safetensors").write_bytes(data)

    assert "model.safetensors" in refusal(model).why


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "golden.jsonl", "tokenizer_config.json"]
)
def test_deep_json_is_one_error(model, name):
    (model / name).write_bytes(DEEP)

    assert name in refusal(model).why


@pytest.mark.parametrize("shard", [5, None, [], "../x", "/etc/passwd", "a\nb", "x" * 300])
def test_an_index_names_files_of_the_model_only(tmp_path, shard):
    model = make_shards(tmp_path / "m")
    index = {"weight_map": {"w1": shard}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))

    assert "is not a file of this directory" in refusal(model).why


def test_a_configuration_of_any_size_is_not_read(model):
    """
    Sparse: it takes no disk, and would take 1 TiB of memory.
    """
    with (model / "config.json").open("ab") as file:
        file.truncate(1 << 40)

    assert "more than" in refusal(model).why


def test_a_plain_model_passes(model):
    """
    Control.
    """
    (model / "model.safetensors").write_bytes(safetensors(w=b"x" * 9))

    assert check_model(model) == ["config.json", "model.safetensors", "tokenizer.json"]
