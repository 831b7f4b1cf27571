"""
What steps cost a device at the least, in bytes read and operations, and how long that takes.  Pure.

Counted is what cannot be avoided: every weight that a step needs and every key and value that it
finds in the cache, read once; products of matrices; attention.  Activations and all writes are left
out, and the few rows of the embedding.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.engines.paged.step import Step
from runtime.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Cost:
    read_bytes: float
    flops: float

    def least_s(self, rates: "Rates") -> float:
        """
        Return the time of a device that reads and computes at once, each as fast as it can.
        """
        return max(self.read_bytes / rates.bytes_per_s, self.flops / rates.flops_per_s)


@dataclass(frozen=True, slots=True)
class Rates:
    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class Model:
    """
    Attributes:
        qkv: Values of one layer's q, k and v matrices.
        rest: Values of its other matrices.
        small: Values of all norms and biases.
        head, embedding: Values of each; an embedding that is the head too counts once, as head.
        kv_bytes: Keys and values of one token in all layers.
        see_flops: Operations of one token that sees one token, in all layers.
    """

    layers: int
    qkv: int
    rest: int
    small: int
    head: int
    embedding: int
    kv_bytes: int
    see_flops: int
    value_bytes: int

    @property
    def matrices(self) -> int:
        """
        Values of all layers' matrices.
        """
        return self.layers * (self.qkv + self.rest)

    @property
    def parameters(self) -> int:
        return self.matrices + self.small + self.head + self.embedding

    def cost(self, step: Step) -> Cost:
        """
        Return what *step* costs.

        Behind its last attention only the tokens that are sampled behind are needed.
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
            flops=2 * products + seen * self.see_flops,
        )

    def prefill_flops(self, tokens: int) -> float:
        """
        Return the matrix products of one prompt: of all layers, and of the head for one token.
        """
        return 2 * (self.matrices * tokens + self.head)

    def counted_flops(self, tokens: int) -> float:
        """
        Return twice all parameters a token, as some count: the embedding and an unused head too.
        """
        return 2 * self.parameters * tokens


def model_of(config: DecoderConfig, value_bytes: int) -> Model:
    hidden, width = config.hidden, config.head_dim
    rows = (config.heads + 2 * config.kv_heads) * width
    norms = 2 + 2 * config.has_output_norms
    bias = rows if config.has_bias else 0
    qk_norms = 2 * width if config.has_qk_norms else 0
    return Model(
        layers=config.layers,
        qkv=rows * hidden,
        rest=hidden * config.heads * width + 3 * hidden * config.intermediate,
        small=config.layers * (norms * hidden + bias + qk_norms) + hidden,
        head=config.vocabulary * hidden,
        embedding=0 if config.is_tied else config.vocabulary * hidden,
        kv_bytes=2 * config.layers * config.kv_heads * width * value_bytes,
        see_flops=4 * config.layers * config.heads * width,
        value_bytes=value_bytes,
    )


def least_s(model: Model, steps: Iterable[Step], rates: Rates) -> float:
    """
    Return the time that *steps*, one after the other, take at the least.
    """
    return sum(model.cost(step).least_s(rates) for step in steps)
