"""
Answers that no honest host gives: of the right types with any content, or of none.

`HostileAnswers` makes the answers, from a seed.  `ForgingSshd` sends them.
"""

import contextlib
import enum
import json
import random
import re
import threading
import time
import typing
from dataclasses import fields, is_dataclass
from typing import NamedTuple

import paramiko

from deploy.host.codec import OneOf, Pattern, Range
from deploy.host.protocol import REQUESTS, SCHEMA, ErrorKind, Facts, result_type
from tests.hostile_text import CI, LINE_ENDS, LINES, MARKUP, TERMINAL
from tests.unit.deploy.transport.loopback import LoopbackSshd

MIB = 2**20
PATHS = [
    "../../../../../../../../etc/shadow",
    "/etc/shadow",
    "/root/.ssh/id_ed25519",
    "..",
    "wheel/../../secret",
    "a\x00b",
]
WORDS = [
    *TERMINAL,
    *MARKUP,
    *CI,
    *LINES,
    *PATHS,
    *LINE_ENDS,
    "",
    "{0.__class__}",
    "%s%n",
    "é" * 400,
]
NUMBERS = [0, 1, -1, 2**31, 2**63 - 1, 2**63, 10**400, 0.5, -0.0, 1e308, True, None]
# Of the kinds of answers, where not 1.  Costly ones are rarer.
WEIGHTS = {"drip": 0.02, "endless": 0.05, "flood": 0.1, "long": 0.2, "deep": 0.3, "forged": 6.0}
VALID_TEXT = ["a" * 64, "0" * 64, "tinydep-1.0-py3-none-any.whl", "blue", "green", "v1", "3.11"]


class Answer(NamedTuple):
    """
    What one command sends.

    Attributes:
        part, repeats: *part* is sent *repeats* times; None: until the channel is closed.
        pause_s: Wait after each part, in seconds.
        status: Exit status; None: the channel closes without one.
    """

    part: bytes
    stderr: bytes = b""
    status: int | None = 0
    repeats: int | None = 1
    pause_s: float = 0.0


class HostileAnswers:
    """
    Attributes:
        count: Answers made, by kind.
    """

    def __init__(self, seed):
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self.count = {}
        self._kinds = {
            name.removeprefix("_make_"): getattr(self, name)
            for name in sorted(dir(self))
            if name.startswith("_make_")
        }
        self._weights = [WEIGHTS.get(kind, 1.0) for kind in self._kinds]

    @property
    def total(self):
        return sum(self.count.values())

    def answer(self, verb, kind=None):
        with self._lock:
            kind = kind or self._rng.choices(list(self._kinds), self._weights)[0]
            self.count[kind] = self.count.get(kind, 0) + 1
            return self._kinds[kind](verb)

    # -- kinds

    def _make_bytes(self, verb):
        return Answer(self._rng.randbytes(self._rng.randrange(400)))

    def _make_json(self, verb):
        return _line(self._any_json(4))

    def _make_words(self, verb):
        return Answer(self._word().encode(errors="surrogatepass"), self._word().encode())

    def _make_deep(self, verb):
        document = f'{{"ok": true, "schema": {SCHEMA}, "result": ['
        opened = self._rng.choice(["[", '{"a":', document])
        return Answer((opened * (200_000 // len(opened))).encode())

    def _make_numbers(self, verb):
        number = self._rng.choice(["9" * 5000, "NaN", "Infinity", "-Infinity", "1e999", "-5"])
        names = [field.name for field in fields(result_type(REQUESTS[verb]))]
        result = ", ".join(f'"{name}": {number}' for name in names)
        return Answer(f'{{"ok": true, "schema": {SCHEMA}, "result": {{{result}}}}}\n'.encode())

    def _make_twice(self, verb):
        return Answer(b'{"ok": false, "ok": true, "schema": %d, "result": {}}\n' % SCHEMA)

    def _make_many(self, verb):
        result = ",".join(['{"a":0}'] * 90_000)
        return Answer(f'{{"ok": true, "schema": {SCHEMA}, "result": [{result}]}}\n'.encode())

    def _make_schema(self, verb):
        return _line({"ok": True, "schema": self._rng.choice([*NUMBERS, *WORDS]), "result": {}})

    def _make_error(self, verb):
        kinds = [*(kind.value for kind in ErrorKind), "Any", "SystemExit", "__class__", "os.system"]
        error = {name: self._word() for name in ("what", "why", "fix")}
        document = {
            "ok": False,
            "schema": SCHEMA,
            "error": {"kind": self._rng.choice(kinds)} | error,
        }
        return _line(document)

    def _make_forged(self, verb):
        return _line(self.forged(verb))

    def _make_other_verb(self, verb):
        return _line(self.forged(self._rng.choice(sorted(REQUESTS))))

    def _make_mutated(self, verb):
        document = self.forged(verb)
        result = document["result"]
        if result and self._rng.random() < 0.8:
            result[self._rng.choice(sorted(result))] = self._any_json(2)
        else:
            result[self._word()] = self._any_json(1)
        return _line(document)

    def _make_hidden(self, verb):
        end = self._rng.choice(["\x85", "\u2028", "\u2029", "\v", "\f", "\x1c", "\r", "\n\n"])
        text = end.join([self._word(), json.dumps(self.forged(verb)), self._word()])
        return Answer(text.encode())

    def _make_status(self, verb):
        status = self._rng.choice([1, 2, 69, 124, 127, 137, 255, 2**31, None])
        said = self._rng.choice([*WORDS, "can't open file '/usr/local/lib/slipway/host.pyz'"])
        return Answer(b"", said.encode(), status)

    def _make_long(self, verb):
        return Answer(b'{"ok": true, "result": "' + b"x" * 64 * 1024, repeats=18)

    def _make_flood(self, verb):
        return Answer(b"", b"\x1b[31m" * (3 * MIB // 5))

    def _make_endless(self, verb):
        return Answer(b"\x1b]0;x\x07[" * 4096, repeats=None)

    def _make_drip(self, verb):
        return Answer(b" ", repeats=None, pause_s=0.02)

    # -- parts

    def forged(self, verb):
        """
        Return an answer of the right types, with any content.
        """
        return {"ok": True, "schema": SCHEMA, "result": self._valid(result_type(REQUESTS[verb]))}

    def forged_facts(self, content):
        """
        Return an answer to the look *content* that has what it asks for, with any values.
        """
        size, _, rest = content.partition(b"\n")
        asked = json.loads(rest[int(size) :])["args"]
        hints = typing.get_type_hints(Facts, include_extras=True)
        with self._lock:
            self.count["facts"] = self.count.get("facts", 0) + 1
            document = self.forged("facts")
            for name in (*("paths", "packages", "users", "units", "listings", "room", "venvs"),):
                item = typing.get_args(hints[name])[1]
                document["result"][name] = {key: self._valid(item) for key in asked[name]}
            document["result"] |= {"gpu": None, "simulation": None}
        return _line(document)

    def granted(self):
        """
        Return an answer that grants a lease.
        """
        with self._lock:
            self.count["granted"] = self.count.get("granted", 0) + 1
            return _line(self.forged("lease.acquire"))

    def _valid(self, kind, limits=()):
        rng, origin = self._rng, typing.get_origin(kind)
        if origin is typing.Annotated:
            base, *limits = typing.get_args(kind)
            return self._valid(base, limits)
        if is_dataclass(kind):
            hints = typing.get_type_hints(kind, include_extras=True)
            return {field.name: self._valid(hints[field.name]) for field in fields(kind)}
        if origin is typing.Union:
            return None if rng.random() < 0.5 else self._valid(typing.get_args(kind)[0])
        if origin is tuple:
            return [self._valid(typing.get_args(kind)[0]) for _ in range(rng.randrange(3))]
        if origin is dict:
            key, item = typing.get_args(kind)
            if OneOf(("blue", "green")) in getattr(key, "__metadata__", ()) and rng.random() < 0.9:
                return {slot: self._valid(item) for slot in ("blue", "green")}
            return {str(self._valid(key)): self._valid(item) for _ in range(rng.randrange(3))}
        if kind is typing.Any:
            return self._any_json(2)
        if issubclass(kind, enum.Enum):
            return rng.choice(list(kind)).value
        if kind is bool:
            return rng.random() < 0.5
        for limit in limits:
            if isinstance(limit, OneOf):
                return rng.choice(limit.values)
            if isinstance(limit, Range):
                low, high = limit.low, min(limit.high, 2**53)
                return rng.choice([int(low), int(high), int((low + high) / 2)])
            if isinstance(limit, Pattern):
                fitting = [t for t in VALID_TEXT + WORDS if re.fullmatch(limit.regex, t)]
                return rng.choice(fitting or VALID_TEXT)
        if kind is str:
            return rng.choice([*VALID_TEXT, "active", "inactive", "UP", "unknown", self._word()])
        return rng.choice([0, 1, 100, 2**31, 2**63 - 1])

    def _any_json(self, depth):
        rng = self._rng
        if depth == 0 or rng.random() < 0.4:
            return rng.choice([self._word(), *NUMBERS[:10], True, None])
        if rng.random() < 0.5:
            return [self._any_json(depth - 1) for _ in range(rng.randrange(4))]
        keys = [*WORDS, "ok", "schema", "result", "error", "kind", "__class__"]
        return {rng.choice(keys): self._any_json(depth - 1) for _ in range(rng.randrange(4))}

    def _word(self):
        return self._rng.choice(WORDS)


def _line(document):
    return Answer(json.dumps(document).encode() + b"\n")


class ForgingSshd(LoopbackSshd):
    """
    Attributes:
        answers: Where the answers come from.
        reads_input: It reads standard input before it answers.
        choose: Called with (verb, standard input); returns the Answer.
    """

    def __init__(self, folder, answers):
        super().__init__(folder)
        self.answers = answers
        self.reads_input = True
        self.choose = lambda verb, content: answers.answer(verb)

    def run_command(self, channel, command):
        # The controller's side may close the channel at any time.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            content = b""
            if self.reads_input:
                content = b"".join(iter(lambda: channel.recv(65536), b""))
            verb = re.split(r"[ ']+", command.strip(" '"))[-1]
            verb = verb if verb in REQUESTS else "status"
            self._send(channel, self.choose(verb, content))
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            channel.close()

    def _send(self, channel, answer):
        if answer.stderr:
            channel.sendall_stderr(answer.stderr)
        left = answer.repeats
        while (left is None or left > 0) and not channel.closed:
            channel.sendall(answer.part)
            left = left if left is None else left - 1
            if answer.pause_s:
                time.sleep(answer.pause_s)
        if answer.status is not None:
            channel.send_exit_status(answer.status)
