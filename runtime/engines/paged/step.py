"""
What the scheduler tells the runner to compute, and what it hears back.  Nouns only.

A row is a request that is being computed.  Its slot is its place in the runner's buffers, its own
until it leaves; its pages hold its keys and values, in order, for its whole budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime.engines.base.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Join:
    """
    A row that the step is the first to compute.

    Attributes:
        pages: Pages of the KV cache, in the order of the row's tokens; never page 0, which is
            where padding writes.
        params: With a seed.
    """

    slot: int
    pages: Sequence[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Decode:
    """
    Compute the newest token of a row, which only the device need know.

    Attributes:
        position: Where that token stands in the row: the tokens before it are in the cache.
    """

    slot: int
    position: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """
    Compute some tokens of a prompt.

    Attributes:
        start: Tokens of the row before these; they are in the cache.
        is_last: It ends the prompt: a token is sampled behind it.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Step:
    """
    One pass over the weights.  A slot stands in *decodes* or in *chunks*, once.
    """

    joins: tuple[Join, ...]
    decodes: tuple[Decode, ...]
    chunks: tuple[Chunk, ...]

    @property
    def sampled(self) -> list[int]:
        """
        The slots that get a token, in the order of `StepOutput`.
        """
        return [d.slot for d in self.decodes] + [c.slot for c in self.chunks if c.is_last]

    @property
    def tokens(self) -> int:
        return len(self.decodes) + sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """
    What a step sampled: one token for each of `Step.sampled`.

    Attributes:
        is_finite: Whether the logits behind each token were; where not, the token means nothing.
    """

    tokens: Sequence[int]
    is_finite: Sequence[bool]


class Running(Protocol):
    """
    A step that the device is computing, or has computed.
    """

    def collect(self) -> StepOutput:
        """
        Wait for the step and return what it sampled.
        """


class StepRunner(Protocol):
    """
    What computes.  Steps run in the order of their launch, each seeing what those before it wrote,
    so that pages and slots may be given away as soon as the last step that needs them is launched.
    """

    def launch(self, step: Step) -> Running:
        """
        Start a step without waiting for it, nor for those before it.
        """


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """
    A model in memory.

    Attributes:
        pages: Of the KV cache, page 0 included.
        step_tokens: Most tokens that a step computes.
        stop_token_ids: Token ids that end an answer.
        prepare: Reads the weights of a directory, in a thread, while the old ones compute; what
            it returns puts them in place, when nothing is computed.  Either may raise, and leaves
            the old ones as they were.
    """

    runner: StepRunner
    pages: int
    page_tokens: int
    step_tokens: int
    context_tokens: int
    vocabulary: int
    parameters: int
    stop_token_ids: frozenset[int]
    prepare: Callable[[str], Callable[[], None]]


class OutOfMemory(Exception):
    """
    Raised by `StepRunner.launch`: the step needs more memory than there is.

    Nothing is lost: a step may be launched again, whole or in parts, and writes the same.
    """


class DeviceLost(Exception):
    """
    Raised by `StepRunner.launch` and `Running.collect`: this process can't use its device any more.

    The only way on is to end the process.
    """
