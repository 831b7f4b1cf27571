"""
What the engines are asked: the same prompts and the same numbers of new tokens for each of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType

WARM_UP_RUN = -1
WARM_UP_REQUESTS = 64
WARM_UP_NEW = 8


@dataclass(frozen=True, slots=True)
class WorkItem:
    prompt: list[int]
    new: int


Work = tuple[WorkItem, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """
    One line of the table: requests that all arrive at once, answered greedily to their full length.

    Attributes:
        prompts, news: Fewest and most tokens of a prompt and of an answer, drawn uniformly.
    """

    name: str
    requests: int
    prompts: tuple[int, int]
    news: tuple[int, int]

    @property
    def is_mix(self) -> bool:
        return self.prompts[0] < self.prompts[1]

    @property
    def is_prefill(self) -> bool:
        return self.news == (1, 1)

    @property
    def asks(self) -> str:
        return f"{self.requests} x {_span(self.prompts)} + {_span(self.news)}"

    def shrunk(self, by: int) -> "Line":
        """
        Return it with as many requests, of fewer tokens.
        """
        first, last = (max(1, tokens // by) for tokens in self.prompts)
        fewest, most = (max(1, tokens // by) for tokens in self.news)
        return replace(self, prompts=(first, last), news=(fewest, most))


LINES: Mapping[str, Line] = MappingProxyType(
    {
        line.name: line
        for line in (
            Line("batch-1", 1, (256, 256), (256, 256)),
            Line("batch-8", 8, (256, 256), (128, 128)),
            Line("batch-64", 64, (256, 256), (128, 128)),
            Line("batch-64-long", 64, (1024, 1024), (256, 256)),
            Line("batch-256", 256, (256, 256), (128, 128)),
            Line("mix-256", 256, (100, 1024), (256, 256)),
            Line("mix-256-both", 256, (100, 1024), (100, 1024)),
            Line("prefill", 1, (8000, 8000), (1, 1)),
        )
    }
)


def draw(line: Line, *, vocabulary: int, seed: int, run: int) -> Work:
    """
    Return the requests of one run: lengths are the same in all runs, tokens in none.

    So runs can be compared, and no prefix cache can answer for the engine.
    """
    lengths = Random(f"{seed}/{line.name}")  # noqa: S311 - work, not secrets
    tokens = Random(f"{seed}/{line.name}/{run}")  # noqa: S311
    work = []
    for _ in range(line.requests):
        prompt, new = lengths.randint(*line.prompts), lengths.randint(*line.news)
        work.append(WorkItem(tokens.choices(range(vocabulary), k=prompt), new))
    return tuple(work)


def draw_warm_up(line: Line, *, vocabulary: int, seed: int) -> Work:
    """
    Return less of the same: what compiles and allocates on first use does it here.
    """
    work = draw(line, vocabulary=vocabulary, seed=seed, run=WARM_UP_RUN)
    return tuple(replace(r, new=min(r.new, WARM_UP_NEW)) for r in work[:WARM_UP_REQUESTS])


def _span(ends: tuple[int, int]) -> str:
    first, last = ends
    return str(first) if first == last else f"{first}-{last}"
