"""
Launches a step.  One that runs out of memory is split, and the steps after it are smaller.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from runtime.engines.paged.step import Chunk, DeviceLost, OutOfMemory, Running, Step, StepRunner

REGROW_STEPS = 256


@dataclass(slots=True)
class Launches:
    """
    The result of launching one step.

    Attributes:
        parts: Launched parts, in order; the whole step if memory sufficed.
        failures: Slots that failed, each with the error.  Earlier parts may hold them too.
        splits: Number of times that a part was split in two.
    """

    parts: list[tuple[Step, Running]] = field(default_factory=list)
    failures: list[tuple[list[int], Exception]] = field(default_factory=list)
    splits: int = 0


class StepSize:
    """
    The largest step that is launched.

    After a split it is the size of the largest part.  After REGROW_STEPS without a split it
    doubles, up to *most*: another process may have freed the memory.

    Attributes:
        tokens: Of the next step, at most.
    """

    def __init__(self, most: int) -> None:
        self.tokens = self._most = most
        self._steps = 0

    def learn(self, launches: Launches) -> None:
        self._steps += 1
        # If a row does not fit alone, a smaller step would not help.
        if launches.splits and not launches.failures:
            self.tokens = max(part.tokens for part, _ in launches.parts)
            self._steps = 0
        elif self._steps == REGROW_STEPS:
            self.tokens = min(2 * self.tokens, self._most)
            self._steps = 0


def launch(runner: StepRunner, step: Step) -> Launches:
    """
    Launch *step*, split as often as needed: a row fails only if its single token does not fit.
    """
    done = Launches()
    failed: set[int] = set()
    waiting = [step]
    while waiting:
        part = _without(waiting.pop(), failed)
        if not part.tokens:
            continue
        try:
            done.parts.append((part, runner.launch(part)))
        except DeviceLost:
            raise
        except Exception as error:
            if isinstance(error, OutOfMemory) and part.tokens > 1:
                done.splits += 1
                waiting += reversed(halves(part))
                continue
            slots = [d.slot for d in part.decodes] + [c.slot for c in part.chunks]
            done.failures.append((slots, error))
            failed.update(slots)
    return done


def halves(step: Step) -> tuple[Step, Step]:
    """
    Part the decodes of *step* from its chunks, else its rows, else the tokens of its only row.
    """
    first, second = _halves(step)
    return (
        replace(first, masks=step.masks_of(first.sampled)),
        replace(second, masks=step.masks_of(second.sampled)),
    )


def _halves(step: Step) -> tuple[Step, Step]:
    decodes, chunks = step.decodes, step.chunks
    assert step.tokens > 1, "one token can't be split"
    if decodes and chunks:
        return Step((), decodes, ()), Step(step.joins, (), chunks)
    if len(decodes) > 1:
        middle = len(decodes) // 2
        return Step((), decodes[:middle], ()), Step((), decodes[middle:], ())
    if len(chunks) > 1:
        middle = len(chunks) // 2
        first, second = chunks[:middle], chunks[middle:]
    else:
        (chunk,) = chunks
        middle = len(chunk.tokens) // 2
        targets, top = chunk.targets, chunk.top
        tokens = chunk.tokens[:middle]
        first = (Chunk(chunk.slot, chunk.start, tokens, False, targets[:middle], top),)
        start, rest = chunk.start + middle, chunk.tokens[middle:]
        second = (Chunk(chunk.slot, start, rest, chunk.is_last, targets[middle:], top),)
    # A row joins in the part with its first token.
    slots = {chunk.slot for chunk in first}
    joining = tuple(join for join in step.joins if join.slot in slots)
    others = tuple(join for join in step.joins if join.slot not in slots)
    return Step(joining, (), first), Step(others, (), second)


def _without(step: Step, slots: Collection[int]) -> Step:
    if not slots:
        return step
    return Step(
        tuple(join for join in step.joins if join.slot not in slots),
        tuple(decode for decode in step.decodes if decode.slot not in slots),
        tuple(chunk for chunk in step.chunks if chunk.slot not in slots),
        tuple(mask for mask in step.masks if mask[0] not in slots),
    )
