"""
How the tokens of an answer are chosen: carried whole from the API to the kernels' inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from runtime.structured import Grammar

MAX_LOGPROBS = 20  # OpenAI's limit, and vLLM's default
# Lower ones are greedy, as in vLLM: a logit that is divided by one can be more than a float holds.
LEAST_TEMPERATURE = 1e-5
MAX_BIASED = 256  # tokens with a logit bias: the most keys of an object that the API takes


# Not slots: `vars` is how the wire protocol reads it.
@dataclass(frozen=True)
class SamplingParams:
    """
    Processors run in vLLM's order: logit_bias, repetition_penalty, frequency_penalty,
    presence_penalty, masks (min_tokens, grammar), temperature, min_p, top_k, top_p.

    Attributes:
        max_tokens: Most tokens of the answer; 0 to compute the prompt alone.
        temperature: From 0, which is greedy, as anything under LEAST_TEMPERATURE is.
        top_p: Share of the probability that is sampled from: over 0, up to 1.
        seed: With the position of a token it fixes the draw of that token; None for any.
        top_k: Number of likeliest tokens that are sampled from; 0 for all.
        min_p: Tokens less likely than this share of the likeliest one are dropped: 0 to 1.
        presence_penalty: Subtracted from the logits of tokens that the answer has: -2 to 2.
        frequency_penalty: As presence_penalty, times the number of occurrences: -2 to 2.
        repetition_penalty: Divides positive logits of tokens that prompt or answer have, and
            multiplies negative ones: over 0.
        logit_bias: Pairs of token id and number that is added to its logit; each id once.
        stop_token_ids: Token ids that end this answer, besides the model's.
        min_tokens: No stop token is sampled before the answer has so many tokens.
        ignore_eos: The model's own stop tokens do not end the answer.
        logprobs: Number of likeliest tokens that are returned with each token, all with their log
            probabilities by the model's own logits; None for no log probabilities at all.
        grammar: What the answer must match; None for anything.
        prompt_logprobs: As logprobs, for each token of the prompt but the first.  The whole prompt
            is computed then, whatever the prefix cache has.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if 0 < self.temperature < LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)

    @property
    def has_penalty(self) -> bool:
        """
        Whether a token's logit depends on the tokens before it.
        """
        return (
            self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.repetition_penalty != 1
        )

    def as_document(self) -> dict[str, Any]:
        """
        Return max_tokens and the fields that differ from their default.
        """
        return {name: value for name, value in vars(self).items() if value != _DEFAULTS.get(name)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """
        Return the parameters of `as_document`; JSON's lists become tuples again.
        """
        found = dict(document)
        if "logit_bias" in found:
            found["logit_bias"] = tuple((token, bias) for token, bias in found["logit_bias"])
        if "stop_token_ids" in found:
            found["stop_token_ids"] = tuple(found["stop_token_ids"])
        if "grammar" in found:
            found["grammar"] = Grammar(**found["grammar"])
        return cls(**found)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """
    Attributes:
        logprob: Natural logarithm of the token's probability.
        top: Pairs of token id and log probability, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


_DEFAULTS = {field.name: field.default for field in fields(SamplingParams)}
