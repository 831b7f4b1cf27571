"""
Computes the roofline: the least bytes read, operations and time of a step.  Pure.

Counts each weight that the step needs and each cached key and value, read once; the matrix
products; and attention.  Ignores activations, writes and the few rows of the embedding.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.engines.paged.step import Step
from runtime.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Cost:
    """
    The least that a step costs a device.
    """

    read_bytes: float
    flops: float

    def least_s(self, rates: "Rates") -> float:
        """
        Return the least time: reading and computing overlap, so the slower one decides.
        """
        return max(self.read_bytes / rates.bytes_per_s, self.flops / rates.flops_per_s)


@dataclass(frozen=True, slots=True)
class Rates:
    """
    The most that a device can do.
    """

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class CostModel:
    """
    The sizes of a decoder that its cost depends on.

    Attributes:
        qkv: Number of values in one layer's q, k and v matrices.
        rest: Number of values in its other matrices.
        small: Number of values in all norms and biases.
        head, embedding: Number of values in each; a tied embedding counts once, as the head.
        kv_bytes: Size of one token's keys and values in all layers.
        attention_flops: Operations of one query token and one key token, in all layers.
        value_bytes: Size of one value.
    """

    layers: int
    qkv: int
    rest: int
    small: int
    head: int
    embedding: int
    kv_bytes: int
    attention_flops: int
    value_bytes: int

    @property
    def matrices(self) -> int:
        """
        Number of values in all layers' matrices.
        """
        return self.layers * (self.qkv + self.rest)

    @property
    def parameters(self) -> int:
        return self.matrices + self.small + self.head + self.embedding

    def cost(self, step: Step) -> Cost:
        """
        Return the least cost of *step*.

        After the last attention, only the tokens whose logits are sampled are computed.
        """
        tokens, sampled = step.tokens, len(step.sampled)
        values = self.matrices + self.small + (self.head if sampled else 0)
        read = sum(decode.position for decode in step.decodes)
        seen = read + len(step.decodes)
        for chunk in step.chunks:
            size = len(chunk.tokens)
            read += chunk.start
            seen += size * chunk.start + size * (size + 1) // 2
        products = tokens * (self.matrices - self.rest) + sampled * (self.rest + self.head)
        return Cost(
            read_bytes=values * self.value_bytes + read * self.kv_bytes,
            flops=2 * products + seen * self.attention_flops,
        )

    def prefill_flops(self, tokens: int) -> float:
        """
        Return the operations of a prompt's matrix products: all layers, and the head once.
        """
        return 2 * (self.matrices * tokens + self.head)

    def counted_flops(self, tokens: int) -> float:
        """
        Return 2 x parameters x tokens, a common estimate; it counts the embedding too.
        """
        return 2 * self.parameters * tokens


def cost_model(config: DecoderConfig, value_bytes: int) -> CostModel:
    """
    Return the cost model of a decoder whose values take *value_bytes* each.
    """
    hidden, width = config.hidden, config.head_dim
    rows = (config.heads + 2 * config.kv_heads) * width
    norms = 2 + 2 * config.has_output_norms
    bias = rows if config.has_bias else 0
    qk_norms = 2 * width if config.has_qk_norms else 0
    return CostModel(
        layers=config.layers,
        qkv=rows * hidden,
        rest=hidden * config.heads * width + 3 * hidden * config.intermediate,
        small=config.layers * (norms * hidden + bias + qk_norms) + hidden,
        head=config.vocabulary * hidden,
        embedding=0 if config.is_tied else config.vocabulary * hidden,
        kv_bytes=2 * config.layers * config.kv_heads * width * value_bytes,
        attention_flops=4 * config.layers * config.heads * width,
        value_bytes=value_bytes,
    )


def least_s(model: CostModel, steps: Iterable[Step], rates: Rates) -> float:
    """
    Return the least time of *steps*, one after the other.
    """
    return sum(model.cost(step).least_s(rates) for step in steps)
