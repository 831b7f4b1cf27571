"""
The requests that an engine computes, the steps in flight, and what a turn learns of them.
"""

from collections import abc
from dataclasses import dataclass, field

from runtime.engines.base.protocol import Scored, Submit
from runtime.engines.paged.block_allocator import Allocation
from runtime.engines.paged.step import Running
from runtime.structured.answer import AnswerState

Ended = tuple[int, str, str]  # id of a request, its finish reason and a detail


@dataclass(slots=True, eq=False)
class Sequence:
    """
    A request that is being computed.

    Attributes:
        tokens: The prompt and the known tokens of the answer.
        launched: Leading tokens whose keys and values a launched step computes.
        last: Value of `launched` when its last token is sampled.
        stop_token_ids: Token ids that end its answer.
        answer: State of its grammar; None without one.
    """

    request: Submit
    deadline_s: float
    slot: int
    allocation: Allocation
    tokens: list[int]
    launched: int
    last: int
    stop_token_ids: frozenset[int]
    answer: AnswerState | None = None
    is_gone: bool = False

    @property
    def made(self) -> int:
        return len(self.tokens) - len(self.request.tokens)


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """
    Attributes:
        sampled: The sequences of its StepOutput, in that order.
        chunked: The sequences of its chunks, in order.
        cached: Pairs of request id and prompt tokens found in the cache.
    """

    running: Running
    seqs: abc.Sequence[Sequence]
    sampled: abc.Sequence[Sequence]
    chunked: abc.Sequence[Sequence]
    prompt_tokens: int
    cached: abc.Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class News:
    """
    What a turn learns: the parts of `EngineReport` that name requests.
    """

    tokens: list[tuple[int, int]] = field(default_factory=list)
    logprobs: list[tuple[int, float, abc.Sequence[tuple[int, float]]]] = field(default_factory=list)
    prompt_logprobs: list[tuple[int, abc.Sequence[Scored]]] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
