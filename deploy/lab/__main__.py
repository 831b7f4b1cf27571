"""
The lab without invoke: python -m deploy.lab up 4 | down | status | ssh n1 [COMMAND...] | cut n1 ...
"""

import os
import sys

from deploy.errors import DeployError
from deploy.lab import lab


def main(argv: list[str]) -> int:
    def say(text: str) -> None:
        sys.stderr.write(f"lab: {text}\n")

    verb, rest = (argv[0], argv[1:]) if argv else ("status", [])
    if verb == "up":
        lab.up(int(rest[0]) if rest else 4, progress=say, fresh="--fresh" in rest)
    elif verb == "down":
        lab.down(progress=say, keep="--keep" in rest)
    elif verb == "ssh":
        ssh = lab.ssh_argv(rest[0])
        os.execvp(ssh[0], [*ssh, *rest[1:]])  # noqa: S606 - this is what the verb is for
    elif verb == "inside":
        done = lab.inside(rest[0], rest[1:])
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    elif verb in ("cut", "heal", "freeze", "thaw"):
        getattr(lab, verb)(rest[0])
    elif verb in ("crash", "start", "wipe"):
        getattr(lab, verb)(rest[0], progress=say)
    if verb in ("up", "status"):
        for h in lab.status().hosts:
            sys.stdout.write(
                f"{h.name} {h.address} {h.state} leader={h.leader} "
                f"memory={h.memory_mib}MiB disk={h.disk_mib}MiB\n"
            )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DeployError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
