"""
The prompt in front of an answer, and where each of its tokens begins in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.server.text import Decoder, Detokenizer


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """
    Attributes:
        offsets: Of each token, in characters; empty where nobody asked for log probabilities.
    """

    text: str
    offsets: Sequence[int] = ()


def echo_tokens(decoder: Decoder, tokens: Sequence[int]) -> EchoedPrompt:
    """
    Return the text of *tokens* with its offsets.  Many take seconds: call it in a thread.
    """
    detokenizer, offsets, pieces, length = Detokenizer(decoder), [], [], 0
    for token in tokens:
        pieces.append(detokenizer.add((token,)))
        offsets.append(length + detokenizer.lead)
        length += len(pieces[-1])
    pieces.append(detokenizer.add((), is_last=True))
    return EchoedPrompt("".join(pieces), offsets)
