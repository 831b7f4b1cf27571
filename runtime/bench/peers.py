"""
Opens the engines that ours is compared with, if they are installed.
"""

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType

from runtime.bench.shapes import ModelShape
from runtime.bench.system import NotInstalled, OpenTimedSystem, TimedSystem


def _transformers(shape: ModelShape, device: str) -> TimedSystem:
    _require_package("transformers")
    from runtime.bench.transformers_peer import TransformersPeer

    return TransformersPeer(shape, device)


def _vllm(shape: ModelShape, device: str) -> TimedSystem:
    _require_package("vllm")
    from runtime.bench.vllm_peer import VllmPeer

    return VllmPeer(shape, device)


def _require_package(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise NotInstalled(package)


PEERS: Mapping[str, OpenTimedSystem] = MappingProxyType(
    {"transformers": _transformers, "vllm": _vllm}
)
