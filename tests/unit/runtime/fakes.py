"""
Strict fakes of the runtime's parts: each fails on a call that no test announced.
"""

import asyncio
import base64
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

from runtime.chat import ChatTemplateError
from runtime.engines.base.in_flight import InFlight, TokenStream
from runtime.engines.base.protocol import FinishReason
from runtime.engines.base.sampling import TokenLogprobs
from runtime.engines.paged.step import OutOfMemory, StepOutput
from runtime.structured import Grammar, GrammarError, GrammarUnavailable
from runtime.structured.process import KeptResults

SPECIAL = 1  # a token id


class CharCodec:
    """
    A codec with one token for each character; SPECIAL has no text unless it is asked for.
    """

    longest_token_bytes = 4

    def least_tokens(self, text, enough):
        return min(len(text), enough)

    def encode(self, text, *, adds_special=True):
        return [ord(char) for char in text]

    def offsets(self, text, *, adds_special=True):
        return list(range(len(text)))

    def decode(self, tokens):
        return "".join(chr(token) for token in tokens if token != SPECIAL)

    def verbatim(self):
        return SimpleNamespace(decode=lambda tokens: "".join(map(chr, tokens)))

    def token_bytes(self, token):
        return chr(token).encode()

    def keeping(self, marks):
        return self


class FakeTemplate:
    """
    A chat template whose prompt is `role=content|` for each message.
    """

    def render(self, messages, *, tools=None, add_generation_prompt=True, kwargs=()):
        parts = [f"{each['role']}={self._text(each.get('content'))}|" for each in messages]
        if "<refuse>" in "".join(parts):
            raise ChatTemplateError("roles must alternate, said the\ntemplate")
        parts += [f"{name}={value}|" for name, value in dict(kwargs).items()]
        if tools is not None:
            parts.insert(0, f"tools={','.join(each['function']['name'] for each in tools)}|")
        return "".join(parts) + (">" if add_generation_prompt else "")

    def _text(self, content):
        if isinstance(content, list):
            return "+".join(part["text"] for part in content)
        return content


class FakeChecker:
    """
    A checker of grammars that refuses those with `<refuse>`, and remembers nothing.
    """

    kept = KeptResults(0)

    def check(self, kind, text):
        if "<refuse>" in text:
            raise GrammarError("too complex, said the\ncompiler")
        if "<unavailable>" in text:
            raise GrammarUnavailable("no tokenizer")
        return Grammar(kind, text, f"compiled {text}")


@dataclass
class Script:
    """
    The engine's reaction to one request.

    Attributes:
        text: The generated text, one token for each character.
        ending: Its finish reason; None: it runs until the test ends it.
        logprobs: Maps a token to its log probabilities, also one of the prompt if asked for.
    """

    text: str = ""
    ending: FinishReason | None = FinishReason.STOP
    detail: str = ""
    logprobs: Callable[[int], TokenLogprobs] | None = None
    cached_tokens: int | None = None


@dataclass
class FakeEngine:
    """
    Answers requests in the order of their announcements.

    Attributes:
        running: Answers whose script has no ending, by id.
        asked: Keyword arguments of each submit, with its prompt as text.
        shared: prefix_of of each submit.
        cancelled: Ids that were cancelled while they were running.
        busy: Number of other requests in flight.
        shares: Whose request each submit or text was.
        priorities: Of each.
        holds: What a drain waits for beside the requests of the engine.
        texts: Ids of texts to embed.
    """

    running: dict[int, TokenStream] = field(default_factory=dict)
    asked: list[dict] = field(default_factory=list)
    shared: list[int | None] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    busy: int = 0
    scores_prompts: bool = True
    limits_keys: bool = True
    shares: list = field(default_factory=list)
    priorities: list[int] = field(default_factory=list)
    has_priorities: bool = True
    holds: InFlight = field(default_factory=InFlight)
    texts: set[int] = field(default_factory=set)
    _scripts: deque[Script] = field(default_factory=deque)

    def will(self, text="", ending=FinishReason.STOP, detail="", **more):
        self._scripts.append(Script(text, ending, detail, **more))

    def done(self):
        assert not self._scripts, f"announced but never requested: {list(self._scripts)}"

    @property
    def in_flight(self):
        return len(self.running.keys() - self.texts) + self.busy

    def submit(self, tokens, params, timeout_s, share=None, prefix_of=None, priority=0):
        prompt = CharCodec().decode(tokens)
        assert self._scripts, f"no announced request has the prompt {prompt!r}"
        script, id, answer = self._scripts.popleft(), len(self.asked), TokenStream()
        self.asked.append({"prompt": prompt, "timeout_s": timeout_s, **vars(params)})
        self.shares.append(share)
        self.priorities.append(priority)
        self.shared.append(prefix_of)
        self.running[id] = answer
        if params.prompt_logprobs is not None and script.logprobs is not None:
            answer.prompt_logprobs += map(script.logprobs, tokens[1:])
        asyncio.get_running_loop().call_soon(self._play, id, answer, script)
        return id, answer

    def hold(self):
        return self.holds.hold()

    def embed(self, tokens, timeout_s, share=None, priority=0):
        """
        Answer with the vector (3, 4, number of tokens), or as announced.
        """
        script, id, answer = Script(), len(self.asked), TokenStream()
        if self._scripts:
            script = self._scripts.popleft()
        self.texts.add(id)
        self.asked.append({"tokens": list(tokens), "timeout_s": timeout_s})
        self.shares.append(share)
        self.priorities.append(priority)
        self.running[id] = answer
        answer.vector = base64.b64encode(array("f", [3, 4, len(tokens)]).tobytes()).decode()
        asyncio.get_running_loop().call_soon(self._play, id, answer, script)
        return id, answer

    def cancel(self, id):
        if self.running.pop(id, None):
            self.cancelled.append(id)

    def _play(self, id, answer, script):
        answer.cached_tokens = script.cached_tokens
        for char in script.text:
            if script.logprobs is not None:
                answer.logprobs.append(script.logprobs(ord(char)))
            answer.push(ord(char))
        if script.ending is not None:
            self.end(id, answer, script.ending, script.detail)

    def end(self, id, answer, ending, detail=""):
        self.running.pop(id, None)
        answer.finish(ending, detail)


def count_up(tokens):
    return tokens[-1] + 1


@dataclass
class _Tenant:
    """
    The fake's record of the row in a slot.

    Attributes:
        shared: Number of leading pages that the row only reads.
        position: Number of its tokens in all steps so far.
        is_live: False once another row got one of its pages.
    """

    pages: list[int]
    shared: int
    position: int
    is_decoding: bool = False
    is_live: bool = True


class FakeRunner:
    """
    A device that computes tokens from the content of its pages, and refuses invalid steps.

    A cell holds all tokens up to its own; computing a token reads the cells before it.
    Steps are computed in the order of their launch, when they or a later one are collected.

    Args:
        rule: Maps all tokens of a row to its next token.

    Attributes:
        calls: Number of launches and collects, failed ones included.
        steps: All launched steps, in order.
        overlaps: Number of steps that were launched while another was not collected.
        broken: Tokens with non-finite logits.
        spoils: Whether the next step has only non-finite logits.
        has_memory: Whether a step fits into memory.
        awaiting: Slots of rows that await masks, as of the newest launch.
        launch_raises, collect_raises: Error of the next launch or collect, raised once.
    """

    def __init__(self, max_rows=1024, pages=1024, page_tokens=4, rule=count_up):
        self.max_rows, self.pages, self.page_tokens = max_rows, pages, page_tokens
        self.rule = rule
        self.calls = 0
        self.steps = []
        self.overlaps = 0
        self.broken = set()
        self.spoils = False
        self.has_memory = lambda step: True
        self.launch_raises = self.collect_raises = None
        self.awaiting = set()
        self._tenants = {}  # by slot, as of the newest launch
        self._todo = deque()
        self._cells = {}  # (page, offset): tokens up to it, and whether all were finite
        self._pages = {}  # by slot, as of the step that is computed
        self._newest = {}

    def launch(self, step):
        assert step.tokens, "a step without tokens"
        self.calls += 1
        if not self.has_memory(step):
            raise OutOfMemory("no room")
        self._check(step)
        self.overlaps += bool(self._todo)
        running = _FakeRunning(self, step, spoils=self.spoils)
        self.spoils = False
        self._todo.append(running)
        if self.launch_raises is not None:
            error, self.launch_raises = self.launch_raises, None
            self._lose(running)
            raise error
        self.steps.append(step)
        return running

    def _check(self, step):
        """
        Check that each row continues at its position, in pages of its own.
        """
        starts = {each.slot: each.start for each in step.chunks}
        for join in step.joins:
            assert 0 <= join.slot < self.max_rows, join
            assert 0 not in join.pages, "page 0 is where padding writes"
            assert len(set(join.pages)) == len(join.pages), "a page twice"
            assert max(join.pages) < self.pages, join
            assert starts[join.slot] % self.page_tokens == 0, "it shares a part of a page"
            self._move_in(join, starts[join.slot] // self.page_tokens)
        slots = [each.slot for each in (*step.decodes, *step.chunks)]
        assert len(set(slots)) == len(slots), "a slot twice"
        assert len({join.slot for join in step.joins}) == len(step.joins), "a slot joins twice"
        for slot in slots:
            assert slot in self._tenants, f"slot {slot} has not joined"
            assert self._tenants[slot].is_live, f"slot {slot} lost a page to another row"
        for decode in step.decodes:
            assert self._tenants[decode.slot].is_decoding, "no token to decode"
            self._advance(decode.slot, decode.position, 1)
        for chunk in step.chunks:
            assert not self._tenants[chunk.slot].is_decoding, "its prompt was at its end"
            assert chunk.tokens, "an empty chunk"
            self._advance(chunk.slot, chunk.start, len(chunk.tokens))
            self._tenants[chunk.slot].is_decoding = chunk.is_last

    def _move_in(self, join, shared):
        read, written = set(join.pages[:shared]), set(join.pages[shared:])
        self._tenants.pop(join.slot, None)
        for tenant in self._tenants.values():
            if written & set(tenant.pages):
                tenant.is_live = False
            full = set(tenant.pages[: tenant.position // self.page_tokens])
            unfinished = set(tenant.pages) - full
            assert not tenant.is_live or not read & unfinished, "it reads a page that is not full"
        self.awaiting.discard(join.slot)
        if join.awaits_masks:
            self.awaiting.add(join.slot)
        self._tenants[join.slot] = _Tenant(list(join.pages), shared, shared * self.page_tokens)

    def _advance(self, slot, position, count):
        tenant = self._tenants[slot]
        assert position == tenant.position, f"slot {slot}: {position} after {tenant.position}"
        tenant.position += count
        assert tenant.position <= len(tenant.pages) * self.page_tokens, "beyond its pages"

    def _lose(self, running):
        """
        Mark what this step and the steps after it wrote as unknown.
        """
        while self._todo and self._todo[0] is not running:
            self._todo.popleft().compute()
        while self._todo:
            self._todo.popleft().spill()

    def _catch_up(self, running):
        self.calls += 1
        if self.collect_raises is not None:
            error, self.collect_raises = self.collect_raises, None
            self._lose(running)
            raise error
        while running.outcome is None:
            self._todo.popleft().compute()

    def _move(self, step):
        for join in step.joins:
            self._pages[join.slot] = list(join.pages)

    def _place(self, slot, position):
        return self._pages[slot][position // self.page_tokens], position % self.page_tokens

    def _read(self, slot, count):
        """
        Return the first *count* tokens of a row from its cells, and whether all were finite.
        """
        if not count:
            return (), True
        places = [self._place(slot, position) for position in range(count)]
        assert set(places) <= self._cells.keys(), "it reads a cell that was never written"
        tokens, is_finite = self._cells[places[-1]]
        for position, place in enumerate(places):
            cell_tokens, _ = self._cells[place]
            assert cell_tokens == tokens[: position + 1], f"position {position} holds {cell_tokens}"
        assert len(tokens) == count, f"position {count - 1} holds {tokens}"
        return tokens, is_finite


class _FakeRunning:
    def __init__(self, runner, step, spoils):
        self.outcome = None
        self._runner, self._step, self._spoils = runner, step, spoils
        self.awaits_masks = not runner.awaiting.isdisjoint(step.sampled)
        self._masks = None if self.awaits_masks else {}

    def mask(self, masks):
        assert self._masks is None, "it awaits no masks"
        assert {slot for slot, _ in masks} <= set(self._step.sampled) & self._runner.awaiting
        self._masks = dict(masks)

    def collect(self):
        self._runner._catch_up(self)
        return self.outcome

    def compute(self):
        assert self._masks is not None, "it awaits masks"
        runner, step = self._runner, self._step
        runner._move(step)
        rows = [(d.slot, d.position, [runner._newest[d.slot]], True) for d in step.decodes]
        rows += [(c.slot, c.start, c.tokens, c.is_last) for c in step.chunks]
        written, sampled = {}, []
        for slot, start, tokens, is_last in rows:
            known, is_finite = runner._read(slot, start)
            for token in tokens:
                is_finite = is_finite and token not in runner.broken and not self._spoils
                written[runner._place(slot, len(known))] = (*known, token), is_finite
                known = (*known, token)
            if is_last:
                token = runner.rule(known)
                if mask := self._masks.get(slot):
                    bits = int.from_bytes(mask, "little")
                    if not bits >> token & 1:
                        token = (bits & -bits).bit_length() - 1
                runner._newest[slot] = token
                sampled.append((runner._newest[slot], is_finite))
        # At the end: no row reads what another writes in the same step.
        runner._cells |= written
        self.outcome = StepOutput([token for token, _ in sampled], [fine for _, fine in sampled])

    def spill(self):
        runner, step = self._runner, self._step
        runner._move(step)
        ranges = [(d.slot, d.position, 1) for d in step.decodes]
        ranges += [(c.slot, c.start, len(c.tokens)) for c in step.chunks]
        for slot, start, count in ranges:
            runner._tenants[slot].is_live = False
            for position in range(start, start + count):
                runner._cells[runner._place(slot, position)] = (), False
