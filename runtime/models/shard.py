"""
The part of each weight that one of several GPUs holds.  Pure.
"""

from dataclasses import dataclass

from runtime.contract.errors import ModelError
from runtime.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Shard:
    """
    One of *size* shards, divided as in Megatron-LM: by heads, and by the MLP's inner values.

    Source: Shoeybi et al., "Megatron-LM", 2019, section 3.
    """

    rank: int
    size: int

    def heads(self, heads: int) -> int:
        return heads // self.size

    def kv_heads(self, kv_heads: int) -> int:
        """
        Return the number of KV heads of a shard; several shards share one if there are too few.
        """
        return max(kv_heads // self.size, 1)

    def span(self, whole: int) -> range:
        """
        Return this shard's range of *whole* items.
        """
        each = whole // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def kv_span(self, kv_heads: int) -> range:
        """
        Return the KV heads that this shard's query heads attend to.
        """
        first = self.rank * kv_heads // self.size
        return range(first, first + self.kv_heads(kv_heads))

    def check(self, config: DecoderConfig) -> None:
        """
        Check that the model can be divided into *size* shards.

        Raises:
            ModelError: A dimension is not a multiple of *size*.
        """
        parts = {
            "attention heads": config.heads,
            "MLP values": config.intermediate,
            "vocabulary entries": config.vocabulary,
        }
        uneven = [f"{count} {what}" for what, count in parts.items() if count % self.size]
        if config.kv_heads % self.size and self.size % config.kv_heads:
            uneven.append(f"{config.kv_heads} KV heads")
        if uneven:
            raise ModelError(
                f"{self.size} GPUs: the model can't be sharded",
                why=f"{' and '.join(uneven)} can't be divided by {self.size}",
                fix="serve it on a number of GPUs that divides them, such as 1",
            )


WHOLE = Shard(0, 1)
