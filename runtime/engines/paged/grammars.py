"""
The grammars of an engine's requests: compiled in threads, before a request joins the queue.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engines.base.protocol import Submit
from runtime.structured import GrammarError, GrammarUnavailable
from runtime.structured.answer import AnswerState, TokenMask

if TYPE_CHECKING:
    from runtime.structured.compiler import GrammarCompiler

COMPILE_THREADS = 2
POLL_S = 0.001  # between two checks of an idle engine whether a grammar is compiled


@dataclass(frozen=True, slots=True)
class Compiled:
    """
    A request whose grammar was compiled, or can't be.

    Attributes:
        arrived_s: time.monotonic of the engine.
    """

    request: Submit
    arrived_s: float
    outcome: AnswerState | GrammarError


class Grammars:
    """
    Args:
        compiler: None if this model can't have grammars.
        why_none: Why it can't.
    """

    def __init__(self, compiler: "GrammarCompiler | None", why_none: str = "") -> None:
        self._compiler, self._why_none = compiler, why_none
        self._pool = ThreadPoolExecutor(COMPILE_THREADS, "grammar")
        self._jobs: dict[int, tuple[Submit, float, Future[AnswerState]]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def has(self, id: int) -> bool:
        return id in self._jobs

    def start(self, request: Submit, now_s: float) -> None:
        """
        Compile the grammar of *request*, which has one.
        """
        grammar = request.params.grammar
        assert grammar is not None, request.id
        job = self._pool.submit(self._compile, grammar.compiled)
        self._jobs[request.id] = request, now_s, job

    def cancel(self, id: int) -> None:
        if found := self._jobs.pop(id, None):
            found[2].cancel()

    def take_done(self) -> list[Compiled]:
        """
        Return what was compiled since the last call, in the order of arrival.
        """
        done = [each for each in self._jobs.values() if each[2].done()]
        for request, _, _ in done:
            del self._jobs[request.id]
        return [Compiled(request, at_s, _outcome(job)) for request, at_s, job in done]

    def masks(self, states: Sequence[AnswerState]) -> list[TokenMask | GrammarError]:
        """
        See `GrammarCompiler.masks`.  Raises nothing: a state that fails gets its error, alone.

        The step of these rows is launched already, on several GPUs by all ranks, and waits for
        masks: without them the ranks would be out of step.
        """
        if not states:
            return []
        try:
            with _as_grammar_errors():
                assert self._compiler is not None, "a state comes from a compiler"
                return self._compiler.masks(states)
        except GrammarError as error:
            if len(states) == 1:
                return [error]
            return [self.masks([state])[0] for state in states]

    def accept(self, state: AnswerState, tokens: Sequence[int]) -> bool:
        """
        Have the grammar of *state* see *tokens*; return `AnswerState.is_complete`.

        Raises:
            GrammarError: It does not allow them, takes too much, or fails.
        """
        with _as_grammar_errors():
            state.accept(tokens)
            return state.is_complete

    def _compile(self, compiled: str) -> AnswerState:
        if self._compiler is None:
            raise GrammarError(self._why_none)
        return self._compiler.compile(compiled)


@contextmanager
def _as_grammar_errors() -> Iterator[None]:
    """
    Turn any error of the block into GrammarError: whatever a grammar does, it ends its own request
    alone.
    """
    try:
        yield
    except GrammarError:
        raise
    except BaseException as error:
        # A panic in Rust is no Exception, and its class can't be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise GrammarError(f"{type(error).__name__}: {error}") from error


def _outcome(job: Future[AnswerState]) -> AnswerState | GrammarError:
    try:
        with _as_grammar_errors():
            return job.result()
    except GrammarError as error:
        return error


def open_grammars(
    model_dir: str, vocabulary: int, stop_token_ids: Collection[int], threads: int
) -> Grammars:
    """
    Read the tokenizer of *model_dir*.  Holds Python's lock meanwhile: call it before steps run.

    Args:
        threads: That compute masks.
    """
    from runtime.structured.compiler import GrammarCompiler

    path = Path(model_dir, "tokenizer.json")
    try:
        compiler = GrammarCompiler(path, vocabulary, stop_token_ids, threads=threads)
    except GrammarUnavailable as error:
        return Grammars(None, str(error))
    return Grammars(compiler)
