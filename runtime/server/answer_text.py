"""
The text of one answer, from its tokens: detokenized, cut at a stop string, with its scores.
"""

from collections.abc import Sequence

from runtime.engines.base.sampling import TokenLogprobs
from runtime.server.scores import ScoredToken, score
from runtime.server.text import Codec, Decoder, Detokenizer, StopScanner


class AnswerText:
    """
    Turns tokens into text, part by part.

    Args:
        decoder: Decodes the tokens.
        prompt: Its last tokens are the context of the first piece.
        is_scored: Each token comes with its log probabilities.

    Attributes:
        tokens: Number of its tokens so far; the last one ends the stop string that was found.
        is_stopped: Whether a stop string was found; nothing comes after it.
    """

    def __init__(
        self,
        codec: Codec,
        decoder: Decoder,
        prompt: Sequence[int],
        stop: Sequence[str],
        *,
        is_scored: bool,
    ) -> None:
        self.tokens = 0
        self._codec, self._is_scored, self._has_stops = codec, is_scored, bool(stop)
        self._detokenizer = Detokenizer(decoder, prompt)
        self._scanner = StopScanner(stop)
        self._decoded = self._given = 0  # characters
        self._scores: list[ScoredToken] = []

    @property
    def is_stopped(self) -> bool:
        return self._scanner.is_stopped

    def add(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> str:
        """
        Return what of the text so far can be given out.
        """
        if not self._is_scored and not self._has_stops:
            self.tokens += len(tokens)
            return self._scan(self._detokenizer.add(tokens))
        text = ""
        # One by one: each token's text has a place of its own, and may end a stop string.
        for index, token in enumerate(tokens):
            if self.is_stopped:
                break
            self.tokens += 1
            offset, piece = self._decoded, self._detokenizer.add((token,))
            if self._is_scored:
                offset += self._detokenizer.lead
                self._scores.append(score(self._codec, token, logprobs[index], offset))
            text += self._scan(piece)
        return text

    def end(self) -> str:
        """
        Return the rest of the text.
        """
        return self._scan(self._detokenizer.add((), is_last=True), is_last=True)

    def take_scores(self, *, is_last: bool = False) -> Sequence[ScoredToken] | None:
        """
        Return the scores of the tokens whose text was given out since the last call; None for an
        answer without scores.

        A token that begins a stop string, or comes after one, is no part of the answer.
        """
        if not self._is_scored:
            return None
        takes_all = is_last and not self.is_stopped
        ready = [each for each in self._scores if takes_all or each.offset < self._given]
        self._scores = self._scores[len(ready) :]
        return ready

    def _scan(self, text: str, *, is_last: bool = False) -> str:
        self._decoded += len(text)
        given = self._scanner.add(text, is_last=is_last)
        self._given += len(given)
        return given
