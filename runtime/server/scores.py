"""
Log probabilities as OpenAI's answers have them: with the text and the bytes of each token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.engines.base.sampling import TokenLogprobs
from runtime.server.text import Codec


@dataclass(frozen=True, slots=True)
class ScoredText:
    """
    One token's text and its log probability.

    Attributes:
        raw: Its bytes; a part of a character is no text of its own.
        logprob: None for the first token of a prompt, which follows nothing.
    """

    raw: bytes
    logprob: float | None

    @property
    def text(self) -> str:
        return self.raw.decode(errors="replace")

    def as_document(self) -> dict[str, Any]:
        return {"token": self.text, "logprob": self.logprob, "bytes": list(self.raw)}


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """
    A token of an answer or of a prompt, and the likeliest ones in its place.

    Attributes:
        offset: Where its text begins in the answer, or in the prompt, in characters.
    """

    chosen: ScoredText
    top: Sequence[ScoredText]
    offset: int


def score(codec: Codec, token: int, logprobs: TokenLogprobs, offset: int) -> ScoredToken:
    """
    Return *token* with the texts of all tokens that *logprobs* has.
    """
    return ScoredToken(
        ScoredText(codec.token_bytes(token), logprobs.logprob),
        [ScoredText(codec.token_bytes(id), logprob) for id, logprob in logprobs.top],
        offset,
    )


def score_prompt(
    codec: Codec, prompt: Sequence[int], logprobs: Sequence[TokenLogprobs], offsets: Sequence[int]
) -> list[ScoredToken]:
    """
    Return the tokens of a *prompt*.

    Args:
        logprobs: Of its tokens from the second on.
        offsets: Where each token begins in the text that the answer repeats.
    """
    first = ScoredToken(ScoredText(codec.token_bytes(prompt[0]), None), (), offsets[0])
    others = zip(prompt[1:], logprobs, offsets[1:], strict=True)
    return [first, *(score(codec, *each) for each in others)]


def chat_logprobs(scores: Sequence[ScoredToken] | None) -> dict[str, Any] | None:
    """
    Return `logprobs` of a chat's choice; None where nobody asked for it.
    """
    if scores is None:
        return None
    content = [
        each.chosen.as_document() | {"top_logprobs": [top.as_document() for top in each.top]}
        for each in scores
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(scores: Sequence[ScoredToken] | None) -> dict[str, Any] | None:
    """
    Return `logprobs` of a completion's choice; None where nobody asked for it.
    """
    if scores is None:
        return None
    return {
        "tokens": [each.chosen.text for each in scores],
        "token_logprobs": [each.chosen.logprob for each in scores],
        "top_logprobs": [
            # The chosen token is always there, as OpenAI has it.
            None
            if each.chosen.logprob is None
            else {one.text: one.logprob for one in (*each.top, each.chosen)}
            for each in scores
        ],
        "text_offset": [each.offset for each in scores],
    }
