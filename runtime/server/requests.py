"""
What a client asks for, what is admitted of it, and the parts of its answer.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from runtime.engines.base.sampling import SamplingParams
from runtime.server.caller import Caller
from runtime.server.grammars import AskedGrammar
from runtime.server.prompts import Conversation, Prompt
from runtime.server.scores import ScoredToken

GRACE_S = 1.0  # wait for the engine's own EXPIRED after a deadline


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """
    What a client asks for.

    Attributes:
        timeout_s: None for the longest that is allowed.
        fills_context: The answer may take what is left of the context; `params.max_tokens` is the
            least that must be left.
        adds_special: Put the tokenizer's own tokens around a text.
        shows_marks: The answer's text has the marks of calls and of reasoning, even if they are
            special tokens.
        skips_special: Special tokens of the answer have no text.
        grammar: What the answer must match; None for anything.
        priority: See `Submit`.
    """

    prompt: Prompt | Conversation
    params: SamplingParams
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None
    fills_context: bool = False
    adds_special: bool = True
    shows_marks: bool = False
    skips_special: bool = True
    grammar: AskedGrammar | None = None
    priority: int = 0

    @property
    def field(self) -> str:
        """
        The field of the body that has the prompt.
        """
        return "messages" if isinstance(self.prompt, Conversation) else "prompt"


class _Places(Protocol):
    """
    The generator that has the places.
    """

    promised: int

    def hold(self) -> AbstractContextManager[None]: ...


class Place:
    """
    A place among the requests that run or wait, from its admission until the engine has it.

    A drain waits for it.  One whose request is given up before that is left when it is forgotten.
    """

    def __init__(self, generator: _Places) -> None:
        self._generator, self._is_taken = generator, True
        generator.promised += 1
        self._holding = ExitStack()
        self._holding.enter_context(generator.hold())

    def leave(self) -> None:
        if self._is_taken:
            self._is_taken = False
            self._generator.promised -= 1
            self._holding.close()

    def __del__(self) -> None:
        self.leave()


@dataclass(slots=True)
class SharedPrompt:
    """
    What the answers of one prompt share: the first computes it, the others find it in the cache.

    Attributes:
        first: The engine's id of the first; None until it is submitted.
    """

    first: int | None = None


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """
    A request with its prompt in tokens; its text is no longer needed.

    Attributes:
        started_s: When it came, on the monotonic clock.
        allowed_s: Time for the whole answer, from then on.
        place: What it counts as until the engine has it.
        late_excuse: Excuse of a late answer: the client asked for less time than it may have.
        shows_marks: As of the GenerationRequest.
        caller: Whose request it is.
        shared: None for a prompt with one answer.
        priority: As of the GenerationRequest.
        offsets: Where each token of the prompt begins in its text, if they have scores.
    """

    prompt: Sequence[int]
    params: SamplingParams
    stop: tuple[str, ...]
    started_s: float
    allowed_s: float
    place: Place
    late_excuse: str | None = None
    shows_marks: bool = False
    caller: Caller = field(default_factory=Caller)
    shared: SharedPrompt | None = None
    skips_special: bool = True
    priority: int = 0
    offsets: Sequence[int] = ()

    @property
    def give_up_s(self) -> float:
        """
        When the engine is no longer waited for, on the monotonic clock.
        """
        return self.started_s + self.allowed_s + GRACE_S


@dataclass(frozen=True, slots=True)
class TextDelta:
    """
    The next part of an answer's text; the last one has a finish_reason.

    Attributes:
        tokens: Generated so far.
        cached_tokens: Tokens of the prompt that were found in the cache; None if unknown.
        scores: Of the tokens of this part; None for an answer without log probabilities.
        prompt_scores: Of the prompt's tokens, with the first part, if they are asked for.
    """

    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: str | None = None
    cached_tokens: int | None = None
    scores: Sequence[ScoredToken] | None = None
    prompt_scores: Sequence[ScoredToken] | None = None


@contextmanager
def left_on_failure(places: Sequence[Place]) -> Iterator[None]:
    """
    Leave *places* if the block fails or is cancelled.
    """
    try:
        yield
    except BaseException:
        for place in places:
            place.leave()
        raise
