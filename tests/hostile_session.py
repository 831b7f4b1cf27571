"""
A host that lies inside of a session: its answers are those of `HostileSshd`, and so are its lines.
"""

import contextlib
import json

from deploy.host.session import GREETING
from tests.hostile_host import GARBAGE, SCALARS, HostileSshd

LINES = (
    "garbage", "noise", "another call", "an earlier call", "closed", "half a line",
    "half an answer", "more than it says", "wrong sizes", "again", "endless",
)  # fmt: skip
_ENDLESS = 64  # MiB; far more than anybody takes


class HostileSessions(HostileSshd):
    """
    Serves sessions.  Of the answers that are not honest, half have a wrong frame.

    Attributes:
        sessions: Number of sessions that were opened.
        told: Names in LINES of the frames that were sent.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.sessions, self.told = 0, []

    def run_command(self, channel, command):
        if "deploy.host.session" not in command:
            super().run_command(channel, command)
            return
        self.sessions += 1
        with contextlib.suppress(OSError, EOFError, ValueError):
            channel.sendall(GREETING)
            stream = channel.makefile("rb")
            while line := stream.readline():
                head = json.loads(line)
                self._reply(channel, head, stream.read(head["size"]))
        channel.close()

    def _reply(self, channel, head, content):
        with self._turn:
            self.answers += 1
            line = None
            if self.random.random() >= self.honest and self.random.random() < 0.5:
                line = self.random.choice(LINES)
                self.told.append(line)
            output, errors, status = self._answer(head["verb"], content)
            noise = self.random.randbytes(200)
            garbage = self.random.choice(GARBAGE).replace(b"\n", b" ")
            other = self.random.choice([head["id"] + 1, -1, True, 2**63, *SCALARS])
            sizes = [self.random.choice([-1, 2**63, None, 0.5, "1", True, []]) for _ in range(2)]
        whole = self._frame(head["id"], status, output, errors)
        if line == "garbage":
            channel.sendall(garbage + b"\n")
        elif line == "noise":
            channel.sendall(noise + b"\n")
        elif line == "another call":
            channel.sendall(self._frame(other, 0, output, errors))
        elif line == "an earlier call":
            channel.sendall(whole + whole)
        elif line == "closed":
            channel.close()
        elif line == "half a line":
            channel.sendall(whole[: whole.find(b"\n") // 2])
            channel.close()
        elif line == "half an answer":
            channel.sendall(whole[:-1])
            channel.close()
        elif line == "more than it says":
            channel.sendall(whole + output + b"\n")
        elif line == "wrong sizes":
            said = {"id": head["id"], "status": 0, "stdout": sizes[0], "stderr": sizes[1]}
            channel.sendall(json.dumps(said).encode() + b"\n")
        elif line == "again":
            channel.sendall(json.dumps({"id": head["id"], "again": True}).encode() + b"\n")
        elif line == "endless":
            for _ in range(_ENDLESS):
                channel.sendall(b"x" * 2**20)
        elif status is None:
            channel.close()
        else:
            channel.sendall(whole)

    def _frame(self, number, status, output, errors):
        said = {"id": number, "status": status or 0, "stdout": len(output), "stderr": len(errors)}
        return json.dumps(said).encode() + b"\n" + output + errors
