"""
How a text's vector is made of its hidden states, as sentence-transformers' files say it.

Source: `Pooling` and `Normalize` of sentence-transformers 5.1 and 6.2, and the files that they
save: 6.2 writes `pooling_mode`, 5.1 a flag for each mode.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from runtime.contract.chat_files import MODULES, POOLING
from runtime.contract.errors import ModelError
from runtime.models.tensor_files import read_json, read_json_value

Mode = Literal["mean", "last", "cls"]
_MODES: Mapping[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}
_NAMED_MODES: Mapping[str, Mode] = {"mean": "mean", "lasttoken": "last", "cls": "cls"}


@dataclass(frozen=True, slots=True)
class Pooling:
    """
    Attributes:
        mode: The mean of all tokens, the last token, or the first.
        normalizes: Whether a vector has the length 1.
    """

    mode: Mode
    normalizes: bool = True

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """
        Return the vectors (n, hidden) in fp32.

        Args:
            hidden: (n, t, hidden), of any type.
            mask: (n, t) bool: False for padding, which is on the right.
        """
        x, weights = hidden.float(), mask[..., None].float()
        if self.mode == "mean":
            vectors = (x * weights).sum(1) / weights.sum(1)
        elif self.mode == "cls":
            vectors = x[:, 0]
        else:
            vectors = x[torch.arange(len(x), device=x.device), mask.sum(1) - 1]
        return functional.normalize(vectors, dim=-1) if self.normalizes else vectors


def read_pooling(model_dir: Path, wanted: str) -> Pooling | None:
    """
    Return the pooling of the model in *model_dir*; None if nothing says how it pools.

    Args:
        wanted: `mean`, `last` or `cls`; or `model` for what POOLING and MODULES say.

    Raises:
        ModelError: They are broken, or ask for something else.
    """
    if wanted != "model":
        modes: dict[str, Mode] = {mode: mode for mode in _MODES.values()}
        return Pooling(modes[wanted])
    path = model_dir / POOLING
    if not os.path.lexists(path):
        return None
    return Pooling(_mode(read_json(path), path), _normalizes(model_dir / MODULES))


def _mode(document: Mapping[str, Any], path: Path) -> Mode:
    known, named = _MODES, document.get("pooling_mode")
    if named is None:
        asked = [
            key for key, value in document.items() if key.startswith("pooling_mode_") and value
        ]
    else:
        known = _NAMED_MODES
        asked = [str(mode)[:80] for mode in (named if isinstance(named, list) else [named])]
    if len(asked) != 1 or asked[0] not in known:
        key = "" if named is None else "pooling_mode: "
        raise ModelError(
            f"{path}: {key}{', '.join(asked) or 'no mode'}",
            why=f"this runtime pools with one of {', '.join(known)}",
            fix="set pooling: mean, last or cls in the configuration, or serve another model",
        )
    return known[asked[0]]


def _normalizes(path: Path) -> bool:
    if not os.path.lexists(path):
        return True
    modules = read_json_value(path)
    if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
        raise ModelError(
            f"{path}: should be a list of modules",
            why="it holds something else",
            fix="use the file that was published with the model",
        )
    kinds = [str(each.get("type")).rpartition(".")[2] for each in modules]
    if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ModelError(
            f"{path}: {unknown[0][:80]}",
            why="this runtime computes Transformer, Pooling and Normalize",
            fix="serve another model",
        )
    return "Normalize" in kinds
