"""
Strict stand-ins for the parts of the runtime: each fails on what nobody announced.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from runtime.engine.client import Answer
from runtime.engine.protocol import Ending
from runtime.engine.scheduler import Emission


class CharCodec:
    """
    A token a character.
    """

    def encode(self, text):
        return [ord(char) for char in text]

    def decode(self, tokens):
        return "".join(chr(token) for token in tokens)


@dataclass
class Script:
    """
    What the engine does with one request.

    Attributes:
        text: What it generates, a token a character.
        ending: How it ends; None leaves it running until the test ends it.
    """

    text: str = ""
    ending: Ending | None = Ending.STOP
    detail: str = ""


@dataclass
class FakeEngine:
    """
    Answers requests as announced, in their order.

    Attributes:
        running: Answers that a script left open, by id.
        asked: Keyword arguments of each submit, with its prompt as text.
        cancelled: Ids that were cancelled while they were running.
        busy: Requests in flight that this test did not send.
    """

    running: dict[int, Answer] = field(default_factory=dict)
    asked: list[dict] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    busy: int = 0
    _scripts: deque[Script] = field(default_factory=deque)

    def will(self, text="", ending=Ending.STOP, detail=""):
        self._scripts.append(Script(text, ending, detail))

    def done(self):
        assert not self._scripts, f"announced and not asked for: {list(self._scripts)}"

    @property
    def in_flight(self):
        return len(self.running) + self.busy

    def submit(self, tokens, **options):
        prompt = CharCodec().decode(tokens)
        assert self._scripts, f"nobody announced a request with the prompt {prompt!r}"
        script, id, answer = self._scripts.popleft(), len(self.asked), Answer()
        self.asked.append({"prompt": prompt, **options})
        self.running[id] = answer
        asyncio.get_running_loop().call_soon(self._play, id, answer, script)
        return id, answer

    def cancel(self, id):
        if self.running.pop(id, None):
            self.cancelled.append(id)

    def _play(self, id, answer, script):
        for char in script.text:
            answer.push(ord(char))
        if script.ending is not None:
            self.end(id, answer, script.ending, script.detail)

    def end(self, id, answer, ending, detail=""):
        self.running.pop(id, None)
        answer.finish(ending, detail)


class FakeRunner:
    """
    A runner whose rows count upwards from their last prompt token.

    Attributes:
        broken: Ids whose numbers are not finite.
        raises: What the next step raises, once.
    """

    def __init__(self, max_rows=1024):
        self.max_rows = max_rows
        self.rows = {}
        self.broken = set()
        self.raises = None
        self.steps = 0

    def add(self, jobs):
        assert jobs, "nobody joins"
        for job in jobs:
            assert job.id not in self.rows, f"{job.id} joins twice"
            self.rows[job.id] = job.tokens[-1]
        assert len(self.rows) <= self.max_rows, f"{len(self.rows)} rows of {self.max_rows}"

    def drop(self, ids):
        assert ids, "nobody leaves"
        for id in ids:
            del self.rows[id]

    def reset(self):
        self.rows.clear()

    def step(self):
        assert self.rows, "a step without rows"
        self.steps += 1
        if self.raises is not None:
            error, self.raises = self.raises, None
            raise error
        found = []
        for id in self.rows:
            self.rows[id] += 1
            found.append(Emission(id, (self.rows[id],), id not in self.broken))
        return found
