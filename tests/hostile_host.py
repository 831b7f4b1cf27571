"""
A host that lies: a real SSH server whose answers are the honest ones, changed, or garbage.

All of it comes from one seeded generator, so that a failing run can be repeated.
"""

import contextlib
import json
import random
import threading

from deploy.host.__main__ import handle
from tests.hostile_text import CORPUS
from tests.unit.deploy.transport.loopback import LoopbackSshd

SCALARS = (
    None, True, -1, 0, 2**63, 10**400, 0.5, 1e308, "", "x", "../../../etc/passwd", "/etc/shadow",
    "~/.ssh/id_ed25519", "-oProxyCommand=id", "$(id)", "{{ 7 * 7 }}", "a" * 5000, "a" * 64, [], {},
    [[[]]], {"__class__": "x"}, *CORPUS,
)  # fmt: skip
KINDS = (
    "UsageError", "LeaseHeld", "LeaseLost", "NothingToRollBackTo", "BundleTampered", "DiskTooSmall",
    "PreconditionError", "CommandFailed", "SchemaMismatch", "Any", "SystemExit", "__class__",
)  # fmt: skip
GARBAGE = (
    b"", b"\n", b"[]", b"null", b"[" * 200_000, b'{"a":' * 50_000, b"\xff\xfe\x00", b"NaN",
    b'{"ok": true, "ok": true, "schema": 3, "result": {}}', b'{"ok": true}', b"\x1b[2J\r\nok",
    b'{"ok": true, "schema": 3, "result": NaN}', b"1" * 5000, b'"' + b"\\u0000" * 9000 + b'"',
)  # fmt: skip


class HostileSshd(LoopbackSshd):
    """
    Runs the real host program on *system* and changes what it says.

    Args:
        honest: Share of the answers that stay as they are, so that longer exchanges take place.

    Attributes:
        answers: Number of the answers given.
    """

    def __init__(self, folder, system, seed, honest=0.0, floods=True):
        super().__init__(folder)
        self.system, self.honest, self.floods = system, honest, floods
        self.random = random.Random(seed)
        self.answers = 0
        self._turn = threading.Lock()

    def run_command(self, channel, command):
        content = b"".join(iter(lambda: channel.recv(65536), b""))
        with self._turn:
            self.answers += 1
            output, errors, status = self._answer(command.split()[-1], content)
        with contextlib.suppress(OSError, EOFError):
            channel.sendall_stderr(errors)
            channel.sendall(output)
            if status is not None:
                channel.send_exit_status(status)
            channel.close()

    def _answer(self, verb, content):
        """
        Return standard output, standard error and exit status; no status: the channel just closes.
        """
        pick = self.random.random()
        if pick < self.honest:
            return self._line(verb, content), b"", 0
        kind = self.random.choice(
            ["changed"] * 8 + ["error"] * 2 + ["garbage", "status", "noise", "closed", "flood"]
        )
        if kind == "changed":
            return self._changed(verb, content), b"", 0
        if kind == "error":
            return self._error(), b"", 0
        if kind == "garbage":
            return self.random.choice(GARBAGE), b"", 0
        if kind == "status":
            return b"", "".join(CORPUS).encode(errors="replace"), self.random.randint(1, 255)
        if kind == "noise":
            return self.random.randbytes(self.random.randint(0, 5000)), b"", 0
        if kind == "flood" and self.floods and self.random.random() < 0.1:
            return b"x" * (3 * 2**20), b"y" * 100, 0
        return b"", b"", None

    def _line(self, verb, content):
        text = content[content.find(b'{"schema"') :].decode(errors="replace")
        return handle(self.system, verb, text).encode() + b"\n"

    def _error(self):
        words = [self.random.choice([t for t in SCALARS if isinstance(t, str)]) for _ in range(3)]
        error = {"kind": self.random.choice(KINDS)} | dict(
            zip(("what", "why", "fix"), words, strict=True)
        )
        return json.dumps({"ok": False, "schema": 3, "error": error}).encode()

    def _changed(self, verb, content):
        document = json.loads(self._line(verb, content))
        for _ in range(self.random.randint(1, 3)):
            self._change(document)
        return json.dumps(document).encode()

    def _change(self, document):
        """
        Replace, remove or add one value somewhere in *document*.
        """
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = self.random.choice(keys)
            if isinstance(place[key], (dict, list)) and self.random.random() < 0.8:
                place = place[key]
                continue
            how = self.random.random()
            if how < 0.8:
                place[key] = self.random.choice(SCALARS)
            else:
                del place[key]
            return
        if isinstance(place, dict):
            place[self.random.choice(["x", "../x", "__class__"])] = self.random.choice(SCALARS)
        else:
            place.append(self.random.choice(SCALARS))
