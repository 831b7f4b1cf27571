"""
Read a standard model directory: config.json, generation_config.json, safetensors (one or sharded).
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.errors import ModelError
from runtime.models.glm import ARCHITECTURES, Glm, GlmConfig
from runtime.models.weights import gather, sources

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_model(path: str | Path, *, device: str, precision: str) -> tuple[Glm, GlmConfig]:
    """
    Return the model in *path* on *device*, without gradients.

    Raises:
        ModelError: The directory is not a model that this runtime can serve.
    """
    path = Path(path)
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "device: cuda",
            why="torch sees no GPU",
            fix="inv doctor, or set device: cpu in the host's runtime.yml",
        )
    config = read_config(path)
    with torch.device("meta"):
        model = Glm(config)
    with _open_tensors(path) as tensors:
        _check(tensors.shapes, config, path)
        dtype = DTYPES[precision]
        state = {
            # A part is freed as soon as it is in its place, so the peak is the model and one layer.
            name: tensor.to(device=device, dtype=dtype).contiguous()
            for name, tensor in gather(config, tensors.read)
        }
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval(), config


def read_config(path: Path) -> GlmConfig:
    """
    Return the config of the model in *path*; `generation_config.json` knows its ends better.
    """
    found = _read_json(path / CONFIG)
    names = found.get("architectures") or []
    if not any(name in ARCHITECTURES for name in names):
        raise ModelError(
            f"{path / CONFIG}: architectures: {', '.join(names) or 'missing'}",
            why=f"this runtime serves {' and '.join(ARCHITECTURES)}",
            fix="release a model of one of these architectures",
        )
    config = GlmConfig.from_json(found, str(path / CONFIG))
    if (path / GENERATION_CONFIG).exists():
        ends = _read_json(path / GENERATION_CONFIG).get("eos_token_id")
        if ends is not None:
            ends = frozenset([ends] if isinstance(ends, int) else ends)
            config = replace(config, ends=ends)
    return config


class _Tensors:
    """
    The tensors of one or several files, by name; nothing is read before `read`.
    """

    def __init__(self, files: dict[str, Any]) -> None:
        self._files = files  # tensor name to its open file

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: list(file.get_slice(name).get_shape()) for name, file in self._files.items()}

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


@contextmanager
def _open_tensors(path: Path) -> Iterator[_Tensors]:
    if (path / INDEX).exists():
        shards = sorted(set(_read_json(path / INDEX)["weight_map"].values()))
    else:
        shards = [WEIGHTS]
    with ExitStack() as stack:
        files = {}
        for shard in shards:
            try:
                file = stack.enter_context(safe_open(path / shard, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(
                    f"{path / shard}: can't be read",
                    why=str(error),
                    fix="stage the release again: inv release",
                ) from error
            files.update(dict.fromkeys(file.keys(), file))
        yield _Tensors(files)


def _check(found: dict[str, list[int]], config: GlmConfig, path: Path) -> None:
    wanted = {
        part: source.shape(index)
        for source in sources(config).values()
        for index, part in enumerate(source.parts)
    }
    extra = {name for name in found if name not in wanted and not _is_harmless(name, config)}
    complaints = [
        *(f"{name} is missing" for name in wanted if name not in found),
        *(
            f"{name} has shape {found[name]}, config.json says {shape}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ),
        *(f"{name} is not part of this architecture" for name in sorted(extra)),
    ]
    if complaints:
        raise ModelError(
            f"{path}: weights and {CONFIG} do not go together",
            why="; ".join(complaints[:3])
            + (f"; and {len(complaints) - 3} more" if len(complaints) > 3 else ""),
            fix=f"take the {CONFIG} that was saved with these weights",
        )


def _is_harmless(name: str, config: GlmConfig) -> bool:
    # A tied model's file may repeat the embedding; old files carry the rotary table.
    return name.endswith("rotary_emb.inv_freq") or (config.is_tied and name == "lm_head.weight")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: can't be read", why=str(error), fix="give the directory of a whole model"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{path}: should be a JSON object",
            why=f"it holds a {type(found).__name__}",
            fix="give the directory of a whole model",
        )
    return found
