"""
A step: what the scheduler has the runner compute, and its output.  Nouns only.

A row is a sequence in the runner's buffers.  Its slot is its index there until it ends; its pages
hold its keys and values, in order, for its whole budget.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtime.engines.base.sampling import SamplingParams, TokenLogprobs

# From texts as token ids to the fp32 values of their vectors, little-endian; None for one that is
# not finite.
EmbedTexts = Callable[[Sequence[Sequence[int]]], list[bytes | None]]


@dataclass(frozen=True, slots=True)
class Join:
    """
    The first appearance of a row.

    Attributes:
        pages: Pages of the KV cache, in the order of the row's tokens; never page 0, which is
            where padding writes.
        params: With a seed, and without a grammar.
        prompt: All its tokens, for a repetition_penalty; else empty.
        stop_token_ids: Of the model and the request, for min_tokens; else empty.
        stops_from: Position after which a stop token may be sampled: those before are too early
            for min_tokens.
        awaits_masks: Whether the row has a grammar: each step that gives it a token waits for
            `Running.mask`.
    """

    slot: int
    pages: Sequence[int]
    params: SamplingParams
    prompt: Sequence[int] = ()
    stop_token_ids: Sequence[int] = ()
    stops_from: int = 0
    awaits_masks: bool = False


@dataclass(frozen=True, slots=True)
class Decode:
    """
    Compute the newest token of a row, which may be known to the device alone.

    Attributes:
        position: Index of that token in the row; the tokens before it are in the cache.
    """

    slot: int
    position: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """
    Compute some tokens of a prompt.

    Attributes:
        start: Number of tokens before these; they are in the cache.
        is_last: Whether it ends the prompt: a token is sampled after it.
        targets: Tokens whose log probabilities are asked for: those that follow each of *tokens*
            in the prompt; empty for none.
        top: Number of likeliest tokens that are returned with each of them.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    is_last: bool
    targets: Sequence[int] = ()
    top: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """
    One pass over the weights.  A slot stands in *decodes* or in *chunks*, once.

    Attributes:
        masks: Pairs of a slot that gets a token, and the tokens that it may get: a bit for each
            token id, the lowest bit first, in int32 words of this machine's byte order;
            ceil(vocabulary / 32) of them.
    """

    joins: tuple[Join, ...]
    decodes: tuple[Decode, ...]
    chunks: tuple[Chunk, ...]
    masks: tuple[tuple[int, bytes], ...] = ()

    @property
    def sampled(self) -> list[int]:
        """
        The slots that get a token, in the order of `StepOutput`.
        """
        return [d.slot for d in self.decodes] + [c.slot for c in self.chunks if c.is_last]

    @property
    def tokens(self) -> int:
        return len(self.decodes) + sum(len(chunk.tokens) for chunk in self.chunks)

    def masks_of(self, slots: Collection[int]) -> tuple[tuple[int, bytes], ...]:
        """
        Return the masks of *slots*.
        """
        return tuple(mask for mask in self.masks if mask[0] in slots)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """
    The tokens that a step sampled: one for each of `Step.sampled`.

    Attributes:
        is_finite: Whether each token's logits were finite; if not, the token is meaningless.
        logprobs: Those of rows that asked for them, by index in *tokens*.
        prompt_logprobs: Those of `Chunk.targets`, by index in `Step.chunks`.
    """

    tokens: Sequence[int]
    is_finite: Sequence[bool]
    logprobs: Mapping[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)


class Running(Protocol):
    """
    A launched step.

    Attributes:
        awaits_masks: Whether it gives a token to a row that awaits masks: then `mask` must be
            called, once, before `collect` and the next launch of any of its rows.
    """

    @property
    def awaits_masks(self) -> bool: ...

    def mask(self, masks: Sequence[tuple[int, bytes]]) -> None:
        """
        Sample the tokens of a step that awaits masks; wait for no step.

        The model computes meanwhile: the masks may depend on the tokens of the step before this
        one.

        Args:
            masks: See `Step.masks`.  A row without one gets any token.

        Raises:
            OutOfMemory, DeviceLost: As `StepRunner.launch`.
        """

    def collect(self) -> StepOutput:
        """
        Wait for the step; return its output.
        """


class StepRunner(Protocol):
    """
    Computes steps in the order of their launch.  Each sees what earlier ones wrote, so pages and
    slots may be reused as soon as the last step that needs them is launched.
    """

    def launch(self, step: Step) -> Running:
        """
        Start a step; wait for no step.
        """


@dataclass(frozen=True, slots=True)
class Embedding:
    """
    How a model makes embeddings.

    Attributes:
        embed: Computes the vectors of a batch of texts.
        shorter_dimensions: What a vector may be cut to.
        batch_tokens: Of one batch, padding included.
    """

    embed: EmbedTexts
    dimensions: int
    shorter_dimensions: tuple[int, ...]
    batch_tokens: int


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """
    A model in memory.

    Attributes:
        pages: Of the KV cache, page 0 included.
        step_tokens: Most tokens that a step computes.
        stop_token_ids: Token ids that end an answer.
        prepare: Reads the weights of a directory, in a thread, while the old ones serve.  Returns
            the function that puts them in place, to be called while no step runs.  If either
            raises, the old weights are unchanged.
        embedding: Computes embeddings; None if the model makes none.
        generates: Whether the model generates text; otherwise *runner* is never asked.
        is_synchronous: Whether a launch returns after the step is computed, as on a CPU.
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
    embedding: Embedding | None = None
    generates: bool = True
    is_synchronous: bool = False


class OutOfMemory(Exception):
    """
    Raised by `StepRunner.launch`: the step needs more memory than there is.

    The step may be launched again, whole or in parts, with the same result.
    """


class DeviceLost(Exception):
    """
    Raised by `StepRunner.launch` and `Running.collect`: this process can't use its device any more.

    The only way on is to end the process.
    """
