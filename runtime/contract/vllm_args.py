"""
The arguments of `vllm serve` that `vllm_args` may have.  Pure; standard library only.

An allow-list: a new version of vLLM brings arguments that nobody here has judged.  Each entry is a
number, a word of a fixed list, or a switch.  None takes a path, a URL, JSON, a module or a class:
those make vLLM read files (--chat-template, --config), write them (--download-dir), connect
(--otlp-traces-endpoint, --kv-transfer-config), or import code (--trust-remote-code, --worker-cls,
--middleware, --logits-processors, --tool-parser-plugin, --load-format=pt).
Source: vLLM's documentation, "Engine Arguments", of 0.12 to 0.27; read 2026-11-26.
"""

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType

_COUNT = r"[0-9]{1,9}"
_NUMBER = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"

# What the value of each argument must match, whole.
WITH_VALUE: Mapping[str, str] = MappingProxyType(
    {
        "--attention-backend": "FLASH_ATTN|FLASHINFER|FLEX_ATTENTION|TRITON_ATTN",
        "--block-size": _COUNT,
        "--cpu-offload-gb": _NUMBER,
        "--load-format": "auto|safetensors",  # a bundle has no other weights
        "--long-prefill-token-threshold": _COUNT,
        "--max-logprobs": _COUNT,
        "--max-long-partial-prefills": _COUNT,
        "--max-num-partial-prefills": _COUNT,
        "--num-gpu-blocks-override": _COUNT,
        "--prefix-caching-hash-algo": "sha256|sha256_cbor|xxhash|xxhash_cbor",
        "--quantization": "awq|awq_marlin|bitsandbytes|compressed-tensors|fp8|gptq|gptq_marlin"
        "|modelopt|modelopt_fp4|mxfp4",
        "--scheduling-policy": "fcfs|priority",
        "--seed": _COUNT,
        "--stream-interval": _COUNT,
        "--swap-space": _NUMBER,
    }
)
SWITCHES = frozenset(
    {
        "--async-scheduling",
        "--calculate-kv-scales",
        "--disable-cascade-attn",
        "--disable-chunked-mm-input",
        "--disable-custom-all-reduce",
        "--disable-sliding-window",
        "--enable-chunked-prefill",
        "--enable-expert-parallel",
        "--enable-prefix-caching",
        "--enforce-eager",
        "--no-async-scheduling",
        "--no-enable-chunked-prefill",
        "--no-enable-prefix-caching",
    }
)
# Arguments that follow from another key.
FROM_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "--dtype": "precision",
        "--gpu-memory-utilization": "memory_fraction",
        "--kv-cache-dtype": "kv",
        "--max-model-len": "context_tokens",
        "--max-num-batched-tokens": "step_tokens",
        "--max-num-seqs": "max_batch_requests",
        "--tensor-parallel-size": "gpus",
    }
)


def check_vllm_arg(arg: str) -> str:
    """
    Return *arg*, one of the list: `--name=value`, or a switch.

    Raises:
        ValueError: It is not; says what to write in its place.
    """
    name, equals, value = arg.partition("=")
    shown = repr(arg[:80])
    if name in SWITCHES and not equals:
        return arg
    if name in WITH_VALUE:
        if equals and re.fullmatch(WITH_VALUE[name], value):
            return arg
        if not equals:
            raise ValueError(f"{shown} needs its value in the same entry: {name}=VALUE")
        raise ValueError(f"{shown}: the value should match {WITH_VALUE[name]}")
    if name in FROM_KEYS:
        raise ValueError(f"{shown} is not for this list: set the key {FROM_KEYS[name]}")
    if not name.startswith("--"):
        raise ValueError(f"{shown}: each entry is --name=value or a switch: --enforce-eager")
    near = difflib.get_close_matches(name[:80], [*WITH_VALUE, *SWITCHES], n=1)
    hint = f"did you mean {near[0]}?" if near else "docs/reference/runtime.md lists them"
    raise ValueError(f"{shown} is not an argument that vllm_args may have; {hint}")
