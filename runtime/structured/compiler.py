"""
Compiles grammars for the tokens of one model, with llguidance.

The model's stop tokens are allowed where the answer matches its grammar, and nowhere else.
"""

import json
import sys
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from runtime.structured.answer import AnswerState, TokenMask
from runtime.structured.errors import GrammarError, GrammarUnavailable
from runtime.structured.grammar import GrammarKind
from runtime.structured.limits import KEPT_GRAMMARS, ParserLimits
from runtime.structured.schema import readable

# Bounded: a model may write white space for ever.
WHITE_SPACE = r"[ \t\n\r]{1,40}"
WORD_BITS = 32


def translate(kind: GrammarKind, text: str) -> str:
    """
    Return *text* in llguidance's own form, which `GrammarCompiler.compile` checks.

    Raises:
        GrammarError: It is not of this *kind*.
    """
    matcher = llguidance.LLMatcher
    try:
        match kind:
            case GrammarKind.JSON:
                return matcher.grammar_from_json_schema(
                    readable(text), overrides={"lenient": False, "whitespace_pattern": WHITE_SPACE}
                )
            case GrammarKind.REGEX:
                return matcher.grammar_from_regex(text)
            case GrammarKind.CHOICE:
                choices = (json.dumps(choice) for choice in json.loads(text))
                return matcher.grammar_from_lark(f"start: {' | '.join(choices)}")
            case GrammarKind.GRAMMAR:
                return matcher.grammar_from_lark(any_to_lark(text))
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    except ValueError as error:
        raise GrammarError(str(error)) from None


class GrammarCompiler:
    """
    Compiles grammars and computes masks.  `compile` may be called from several threads.

    Reading a tokenizer of 128,000 tokens takes 1 s and 140 MB, and holds Python's lock.

    Args:
        tokenizer: Path of a tokenizer.json.
        vocabulary: Rows of the model's head; None for the tokenizer's number of tokens.
        threads: That compute the masks of one step.

    Raises:
        GrammarUnavailable: The tokenizer can't be used.
    """

    def __init__(
        self,
        tokenizer: Path,
        vocabulary: int | None,
        stop_token_ids: Collection[int] = (),
        *,
        threads: int = 1,
        limits: ParserLimits | None = None,
    ) -> None:
        # config.json may name tokens that the model does not have: they are never generated.
        most = sys.maxsize if vocabulary is None else vocabulary
        ends = sorted(token for token in stop_token_ids if 0 <= token < most)
        try:
            text = tokenizer.read_text(encoding="utf-8")
            self._tokenizer = _read(text, vocabulary, ends)
        except (OSError, ValueError) as error:
            raise GrammarUnavailable(f"{tokenizer.name}: {error}") from None
        size = self._tokenizer.vocab_size
        self._rows = size if vocabulary is None else vocabulary
        self._stops = _bits(ends, size)
        # End tokens of llguidance, and tokens of the file for which the model has no row.
        self._never = _bits([*self._tokenizer.eos_tokens, *range(self._rows, size)], size)
        self._executor = llguidance.LLExecutor(threads)
        self._limits = llguidance.LLParserLimits(
            **asdict(limits or ParserLimits()), verbose_errors=False
        )
        self._kept: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = Lock()

    def compile(self, compiled: str) -> AnswerState:
        """
        Return an empty answer for the grammar that `translate` returned.

        Raises:
            GrammarError: It can't be compiled, or takes too much.
        """
        with self._lock:
            kept = self._kept.get(compiled)
        if kept is None:
            # Not under the lock: Python's is released meanwhile, too.
            kept = llguidance.LLMatcher(self._tokenizer, compiled, log_level=0, limits=self._limits)
            if kept.is_error():
                raise GrammarError(kept.get_error())
        with self._lock:
            self._kept[compiled] = kept
            self._kept.move_to_end(compiled)
            while len(self._kept) > KEPT_GRAMMARS:
                self._kept.popitem(last=False)
        return AnswerState(kept.deep_copy(), compiled)

    def masks(self, states: Sequence[AnswerState]) -> list[TokenMask | GrammarError]:
        """
        Return the mask of each of *states*, or why it has none.  Python's lock is released.
        """
        if not states:
            return []
        words: NDArray[np.uint32] = np.zeros((len(states), len(self._stops)), dtype=np.uint32)
        self._executor.unsafe_compute_mask_ptr(
            [(state.matcher, row) for row, state in enumerate(states)],
            words.ctypes.data,
            words.shape[1] * words.itemsize,
            len(states),
        )
        words &= ~self._never
        found: list[TokenMask | GrammarError] = []
        for own, state in zip(words, states, strict=True):
            if state.matcher.is_error():
                self._forget(state)
                found.append(GrammarError(state.matcher.get_error()))
                continue
            # Whatever the grammar says: an answer that does not match never ends.
            may_end = state.matcher.is_accepting()
            own[:] = own | self._stops if may_end else own & ~self._stops
            mask = own[: -(-self._rows // WORD_BITS)]
            found.append(TokenMask(mask.tobytes(), may_end, not mask.any()))
        return found

    def _forget(self, state: AnswerState) -> None:
        # Its copies share what made it fail: the states of their lexer.
        with self._lock:
            self._kept.pop(state.compiled, None)


def _read(text: str, vocabulary: int | None, stop_token_ids: list[int]) -> llguidance.LLTokenizer:
    ends = stop_token_ids or [_a_token_without_text(text)]
    try:
        return llguidance.LLTokenizer(text, n_vocab=vocabulary, eos_token=ends)
    except ValueError:
        # The file may have more tokens than the model has rows.
        whole = llguidance.LLTokenizer(text, eos_token=ends)
        if vocabulary is None or whole.vocab_size <= vocabulary:
            raise
        return whole


def _a_token_without_text(text: str) -> int:
    """
    Return a special token of a tokenizer.json, or its last token: llguidance wants an end token,
    and never allows it as text.
    """
    try:
        document = json.loads(text)
        for token in document["added_tokens"]:
            if token["special"]:
                return int(token["id"])
        return len(document["model"]["vocab"]) - 1
    except (LookupError, TypeError) as error:
        raise ValueError(f"not a tokenizer: {type(error).__name__}: {error}") from None


def _bits(tokens: Collection[int], size: int) -> NDArray[np.uint32]:
    """
    Return a mask of *tokens*, of those under *size*.
    """
    flags = np.zeros(-(-size // WORD_BITS) * WORD_BITS, dtype=np.uint8)
    flags[[token for token in tokens if 0 <= token < size]] = 1
    return np.packbits(flags, bitorder="little").view(np.uint32)
