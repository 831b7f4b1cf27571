import json

import pytest
import torch
from safetensors.torch import save_file

from runtime.contract.errors import ModelError
from runtime.models.tensor_files import find_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def write(folder, header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + data)


def header_entry(begin, end, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_tensors_are_located_as_the_reference_wrote_them(tmp_path):
    """
    Shape, type and bytes, with metadata and without.
    """
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file(TENSORS, path, metadata=metadata)
        tensors = find_tensors(tmp_path)
        assert tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            stored = tensors[name]
            end = stored.offset + stored.size_bytes
            assert stored.shape == tuple(tensor.shape)
            raw = path.read_bytes()[stored.offset : end]
            assert raw == bytes(tensor.view(-1).view(torch.uint8).tolist())


def test_the_index_lists_the_files_of_a_sharded_model(tmp_path):
    """
    model.safetensors is not read then.
    """
    names = {name: f"model-{name}.safetensors" for name in TENSORS}
    for name, file in names.items():
        save_file({name: TENSORS[name]}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert {name: stored.path.name for name, stored in find_tensors(tmp_path).items()} == names


def test_of_a_tensor_in_two_files_the_index_names_one(tmp_path):
    """
    As transformers reads it.
    """
    for file in ("1", "2"):
        save_file(TENSORS, tmp_path / f"{file}.safetensors")
    names = {"a": "2.safetensors", "b": "1.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert {name: stored.path.name for name, stored in find_tensors(tmp_path).items()} == names


def test_unsupported_types_are_listed(tmp_path):
    """
    A file may have tensors that we do not load; only the type is read.
    """
    write(tmp_path, {"a": header_entry(0, 4, dtype="F8_E4M3")}, bytes(4))
    assert find_tensors(tmp_path)["a"].dtype == "F8_E4M3"


@pytest.mark.parametrize(
    ("header", "data", "length", "words"),
    [
        ({"a": header_entry(0, 16)}, bytes(15), None, "lies at 0 to 16 of 15 bytes"),
        ({"a": header_entry(0, 16)}, bytes(17), None, "1 bytes belong to no tensor"),
        ({"a": header_entry(0, 12)}, bytes(12), None, "has 12 bytes of F32"),
        ({"a": header_entry(4, 20)}, bytes(20), None, "lies at 4 to 20"),
        ({"a": header_entry(0, 16), "b": header_entry(8, 24)}, bytes(24), None, "b lies at 8"),
        ({"a": header_entry(-16, 0)}, bytes(16), None, "lies at -16"),
        ({"a": header_entry(16, 0, dtype="I32")}, bytes(16), None, "lies at 16 to 0"),
        ({"a": {"dtype": "F32"}}, bytes(16), None, "data_offsets"),
        ({"a": header_entry(0, 16) | {"shape": 4}}, bytes(16), None, "not a safetensors header"),
        ({"a": []}, bytes(16), None, "not a safetensors header"),
        ([], b"", None, "not a safetensors header"),
        (b"{", b"", 1, "a header of 1 bytes"),
        (b"nonsense", b"", None, "not a safetensors header"),
        (b"{}", b"", 2**40, "a header of 1099511627776 bytes"),
        (b"", b"", 0, "a header of 0 bytes"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, header, data, length, words):
    """
    Every inconsistency is named, with the file.
    """
    write(tmp_path, {"a": header_entry(0, 16)}, bytes(16))
    assert find_tensors(tmp_path).keys() == {"a"}  # negative control
    write(tmp_path, header, data, length)
    with pytest.raises(ModelError, match="can't be read") as caught:
        find_tensors(tmp_path)
    assert words in caught.value.why
    assert "model.safetensors" in caught.value.what


def test_a_missing_file_is_named(tmp_path):
    """
    Neither an index nor the single file exists, or the index names a missing file.
    """
    with pytest.raises(ModelError, match=r"model\.safetensors: can't be read"):
        find_tensors(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for text in ("{}", '{"weight_map": []}', "[]", "{"):
        index.write_text(text)
        with pytest.raises(ModelError, match=r"index\.json"):
            find_tensors(tmp_path)
