"""
How the tokens of an answer are chosen: carried whole from the API to the kernels' inputs.
"""

from dataclasses import dataclass


# Not slots: `vars` is how the wire protocol writes it.
@dataclass(frozen=True)
class SamplingParams:
    """
    Attributes:
        max_tokens: Most tokens of the answer.
        temperature: From 0, which is greedy.
        top_p: Share of the probability that is sampled from: over 0, up to 1.
        seed: With the position of a token it fixes the draw of that token; None for any.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
