"""
Masks on a GPU: behind CUDA graphs, equal to the same code on the CPU.
"""

import random

import pytest
import torch

from runtime.engines.base.sampling import SamplingParams
from runtime.engines.paged.runner import PagedRunner
from runtime.engines.paged.step import Chunk, Decode, Join, Step
from tests.gpu.test_runner import PAGE, make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

VOCABULARY, PROMPT, STEPS, ROWS = 32000, 20, 12, 6


def run(model, *, masks, has_graphs=True, has_more=False):
    """
    Return the tokens of each row.

    Args:
        masks: Function of row and step: the only token that the row may get, or None for a row
            without a mask.
        has_more: Launch another row's step between each step and its masks.
    """
    rng = random.Random(3)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(PROMPT)] for _ in range(ROWS + 1)]
    pages = -(-(PROMPT + STEPS + 1) // PAGE)
    runner = PagedRunner(
        model, slots=ROWS + 1, pages=1 + (ROWS + 1) * pages, page_tokens=PAGE, row_pages=pages
    )
    if has_graphs:
        runner.capture()
    params = SamplingParams(STEPS, temperature=0.8, top_p=0.9, seed=5)

    def join(slot):
        awaits = masks(slot, 0) is not None
        own = range(1 + slot * pages, 1 + (slot + 1) * pages)
        return Join(slot, own, params, awaits_masks=awaits)

    def finish(running, step):
        words = []
        for slot in range(ROWS):
            if (token := masks(slot, step)) is not None:
                flags = bytearray(4 * -(-VOCABULARY // 32))
                flags[token // 8] |= 1 << token % 8
                words.append((slot, bytes(flags)))
        if running.awaits_masks:
            running.mask(words)
        return running.collect().tokens

    answers = [[] for _ in range(ROWS)]
    for at in range(STEPS):
        if at == 0:
            chunks = tuple(Chunk(slot, 0, prompts[slot], True) for slot in range(ROWS))
            step = Step(tuple(map(join, range(ROWS))), (), chunks)
        else:
            step = Step((), tuple(Decode(slot, PROMPT + at - 1) for slot in range(ROWS)), ())
        running = runner.launch(step)
        if has_more:
            more = Step((), (Decode(ROWS, PROMPT + at - 1),), ())
            if at == 0:
                more = Step(
                    (Join(ROWS, range(1 + ROWS * pages, 1 + (ROWS + 1) * pages), params),),
                    (),
                    (Chunk(ROWS, 0, prompts[ROWS], True),),
                )
            runner.launch(more).collect()
        for answer, token in zip(answers, finish(running, at), strict=True):
            answer.append(token)
    return answers


def forced(row, step):
    """
    Rows 1, 3 and 5 get tokens that are unlikely.
    """
    return 1000 + 37 * row + step if row % 2 else None


def free(row, step):
    return None


@pytest.mark.parametrize("has_more", [False, True])
@pytest.mark.parametrize("has_graphs", [True, False])
def test_masked_rows_get_their_token_and_the_others_keep_theirs(has_graphs, has_more):
    """
    Also when another step is launched before the masks are there.
    """
    model = make_model("GlmForCausalLM")
    masked = run(model, masks=forced, has_graphs=has_graphs, has_more=has_more)
    plain = run(model, masks=free, has_graphs=has_graphs)
    assert masked[::2] == plain[::2]
    assert masked[1::2] == [[forced(row, at) for at in range(STEPS)] for row in (1, 3, 5)]
    assert masked[1::2] != plain[1::2]
