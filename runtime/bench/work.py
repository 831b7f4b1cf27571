"""
The workloads: the same prompts and numbers of new tokens for every engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType
from typing import Any

from runtime.bench.grammar import ENDLESS

WARM_UP_RUN = -1
WARM_UP_REQUESTS = 64
WARM_UP_NEW = 8
# What half of the requests of a line ask for.
LOGPROBS = MappingProxyType({"logprobs": 5})
PENALTIES = MappingProxyType(
    {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5}
)
TOP_K = MappingProxyType({"temperature": 1.0, "top_k": 50, "min_p": 0.05})
SCHEMA = MappingProxyType({"grammar": ENDLESS})


@dataclass(frozen=True, slots=True)
class WorkItem:
    """
    One request: its prompt, and the number of tokens to generate.

    Attributes:
        sampling: Its fields of `SamplingParams`; none for a greedy request.
    """

    prompt: list[int]
    new_tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict)


Work = tuple[WorkItem, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """
    One line of the table: requests that arrive at once and run to their full length, greedily if
    *half* says nothing else.

    Attributes:
        prompt_tokens, new_tokens: Fewest and most tokens of a prompt and of an answer; each
            length is drawn uniformly.
        half: Sampling fields of every second request.
    """

    name: str
    requests: int
    prompt_tokens: tuple[int, int]
    new_tokens: tuple[int, int]
    half: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_mix(self) -> bool:
        return self.prompt_tokens[0] < self.prompt_tokens[1]

    @property
    def is_prefill(self) -> bool:
        return self.new_tokens == (1, 1)

    @property
    def workload(self) -> str:
        return f"{self.requests} x {_span(self.prompt_tokens)} + {_span(self.new_tokens)}"

    def shrunk(self, by: int) -> "Line":
        """
        Return the line with the same number of requests, and token counts divided by *by*.
        """
        first, last = (max(1, tokens // by) for tokens in self.prompt_tokens)
        fewest, most = (max(1, tokens // by) for tokens in self.new_tokens)
        return replace(self, prompt_tokens=(first, last), new_tokens=(fewest, most))


LINES: Mapping[str, Line] = MappingProxyType(
    {
        line.name: line
        for line in (
            Line("batch-1", 1, (256, 256), (256, 256)),
            Line("batch-8", 8, (256, 256), (128, 128)),
            Line("batch-64", 64, (256, 256), (128, 128)),
            Line("logprobs-64", 64, (256, 256), (128, 128), LOGPROBS),
            Line("penalties-64", 64, (256, 256), (128, 128), PENALTIES),
            Line("top-k-64", 64, (256, 256), (128, 128), TOP_K),
            Line("schema-64", 64, (256, 256), (128, 128), SCHEMA),
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
    Return the requests of one run.

    All runs have the same lengths, so they can be compared.  Each run has other tokens, so the
    prefix cache never matches.
    """
    lengths = Random(f"{seed}/{line.name}")  # noqa: S311 - no secrets
    tokens = Random(f"{seed}/{line.name}/{run}")  # noqa: S311
    work = []
    for number in range(line.requests):
        prompt, new = lengths.randint(*line.prompt_tokens), lengths.randint(*line.new_tokens)
        sampling = line.half if number % 2 else {}
        work.append(WorkItem(tokens.choices(range(vocabulary), k=prompt), new, sampling))
    return tuple(work)


def draw_warm_up(line: Line, *, vocabulary: int, seed: int) -> Work:
    """
    Return a smaller run of *line*, so that compilation and allocation happen before the runs.
    """
    work = draw(line, vocabulary=vocabulary, seed=seed, run=WARM_UP_RUN)
    return tuple(
        replace(r, new_tokens=min(r.new_tokens, WARM_UP_NEW)) for r in work[:WARM_UP_REQUESTS]
    )


def _span(bounds: tuple[int, int]) -> str:
    first, last = bounds
    return str(first) if first == last else f"{first}-{last}"
