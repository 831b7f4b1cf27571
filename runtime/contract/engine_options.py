"""
The engine's settings: types, defaults and limits, in one place.  Pure; standard library only.

The fleet file's `service`, the runtime's host and release config and the engine's load message all
embed `EngineOptions`.  A new key is one line here and one in `inventories/example.yml`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

from runtime.contract.vllm_args import check_vllm_arg

# Schema version that every release a host may go back to reads.  Options that came later are
# written to a host only where they differ from the default: an older release rejects their keys.
OLDEST_VERSION = 1
SAME: Any = object()  # a default that is the runtime's


@dataclass(frozen=True, slots=True)
class OptionRules:
    """
    What the schema says of one option beside its type and default.

    Attributes:
        since: Version of the options schema that added it.
        ge, le: Limits, inclusive; None for no limit.
        fleet_default: Default in the fleet file, where it differs from the runtime's; else SAME.
        in_fleet_file: Whether the fleet file's `service` has the key.
        release_may_override: Whether a release's own config may set it.
        only_with_engine: Value of `engine` without which it has no effect; None for any.
        check_item: Of a tuple: checks one entry; raises ValueError.
    """

    since: int = 1
    ge: float | None = None
    le: float | None = None
    fleet_default: Any = SAME
    in_fleet_file: bool = True
    release_may_override: bool = True
    only_with_engine: str | None = None
    check_item: Callable[[str], str] | None = None

    def allow(self, value: object) -> bool:
        """
        Return whether *value* is within the limits; what is no number always is.
        """
        if not isinstance(value, int | float):
            return True
        return (self.ge is None or value >= self.ge) and (self.le is None or value <= self.le)


def option(default: Any, **rules: Any) -> Any:
    return field(default=default, metadata={"rules": OptionRules(**rules)})


@dataclass(frozen=True)
class EngineOptions:
    """
    Settings of one engine.  Names that end in `_s` are seconds; in the fleet file they lose the
    suffix and carry their unit in the value.

    Attributes:
        precision: Number format of the weights.
        threads: Torch threads of the engine process.
        max_wait_s: Longest wait of the oldest request for others to share its batch.
        max_batch_tokens: KV-cache tokens of a batch; None for as many as the device holds, at most
            max_batch_requests of context_tokens.
        weights: Format of the layers' matrices; full is the precision's.
        kv: Format of keys and values; same is the precision's.
        memory_fraction: Share of each GPU's whole memory, on a CPU of what the unit may use.
        context_tokens: Of a request, its answer included; None for the model's.
        page_tokens: Of a page of the KV cache.
        step_tokens: Most tokens of one step; None for 8192, on a CPU 512.
        gpus: GPUs that share the model, each with a part of every weight.
        engine: slipway's own, or `vllm serve`.
        vllm_args: Arguments of `vllm serve` beside those that follow from the other options.
        pooling: How the vector of a text is made of its tokens' states; model is what the model's
            own files say.
        generation_defaults: Whose defaults the sampling fields of OpenAI's routes have: OpenAI's,
            or those of the model's generation_config.json.
    """

    device: Literal["cpu", "cuda"] = option("cpu", fleet_default="cuda")
    precision: Literal["fp32", "fp16", "bf16"] = option("fp32", fleet_default="bf16")
    threads: int = option(1, ge=1, le=256, fleet_default=4)
    max_batch_requests: int = option(32, ge=1, le=1024)
    max_batch_tokens: int | None = option(None, ge=1, in_fleet_file=False)
    max_wait_s: float = option(0.005, ge=0, le=10)
    engine: Literal["slipway", "vllm"] = option("slipway", since=2)
    vllm_args: tuple[str, ...] = option(
        (), since=2, only_with_engine="vllm", check_item=check_vllm_arg
    )
    weights: Literal["full", "int8", "int4"] = option("full", since=3)
    kv: Literal["same", "fp8", "int8"] = option("same", since=3)
    memory_fraction: float = option(0.9, ge=0.1, le=0.98, since=3)
    context_tokens: int | None = option(None, ge=1, since=3)
    page_tokens: Literal[16, 32, 64] = option(64, since=3)
    step_tokens: int | None = option(None, ge=16, since=3)
    gpus: int = option(1, ge=1, le=8, since=3)
    generation_defaults: Literal["openai", "model"] = option("openai", since=4)
    pooling: Literal["model", "mean", "last", "cls"] = option("model", since=4)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "EngineOptions":
        """
        Return the options of a JSON *document*, which has lists where options are tuples.
        """
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in document.items()
        }
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Option:
    """
    One key of the schema.

    Attributes:
        kind: Its type, as annotated.
    """

    name: str
    kind: Any
    default: Any
    rules: OptionRules

    @property
    def is_seconds(self) -> bool:
        return self.name.endswith("_s")

    @property
    def fleet_key(self) -> str:
        return self.name.removesuffix("_s")

    @property
    def fleet_default(self) -> Any:
        return self.default if self.rules.fleet_default is SAME else self.rules.fleet_default

    @property
    def choices(self) -> tuple[Any, ...]:
        return get_args(self.kind)


def _read_options() -> Mapping[str, Option]:
    kinds = get_type_hints(EngineOptions)
    return MappingProxyType(
        {f.name: Option(f.name, kinds[f.name], f.default, f.metadata["rules"])
         for f in fields(EngineOptions)}
    )  # fmt: skip


OPTIONS = _read_options()


def host_document(options: EngineOptions) -> dict[str, Any]:
    """
    Return the keys of a host's `runtime.yml` that say *options*, in the order of the schema.

    Options newer than OLDEST_VERSION are left out at their defaults: an older release on the host
    rejects their keys, which would block a rollback to it.
    """
    document = {}
    for name, each in OPTIONS.items():
        value, rules = getattr(options, name), each.rules
        is_idle = rules.only_with_engine not in (None, options.engine)
        is_required = rules.since <= OLDEST_VERSION and rules.in_fleet_file
        if not is_idle and (is_required or value != each.default):
            document[name] = value
    return document
