import argparse
import asyncio

import pytest

from tests.fairness_load import measure, result
from tests.unit.deploy.demo.server import Server, answer


def test_the_ratio_is_of_the_99th_percentiles():
    """
    Nearest rank: of 200 times the third slowest.
    """
    alone = [0.1] * 197 + [0.2, 0.3, 0.9]
    beside = [0.1] * 197 + [0.22, 0.5, 9.0]

    document = result(alone, beside, {503: 2, 200: 5})

    assert document["alone_s"] == {"p50": 0.1, "p99": 0.2}
    assert document["beside_s"] == {"p50": 0.1, "p99": 0.22}
    assert document["p99_ratio"] == pytest.approx(1.1)
    assert document["flood_answers"] == {"200": 5, "503": 2}


def test_alone_and_beside_the_flood_are_measured_in_turn():
    """
    As many requests of the polite key in each, and those of the flood between them.
    """

    async def run():
        async with Server(lambda n, body: answer()) as server:
            arguments = argparse.Namespace(
                url=server.url, ca=None, polite="p", flood="f", requests=7, rounds=2, workers=3,
                pause=0, warm=0,
            )  # fmt: skip
            return await measure(arguments), server.heads

    document, heads = asyncio.run(run())

    is_polite = ["authorization: bearer p" in head for head in heads]
    assert document["requests"] == 8, "4 in each round"
    assert sum(is_polite) == 5 + 2 * 8
    assert sum(document["flood_answers"].values()) > 0
    assert all(is_polite[:9]), "nothing of the flood before the first round is over"
    assert not all(is_polite[9:])
