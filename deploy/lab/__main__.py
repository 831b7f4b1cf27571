"""
Command line of the lab for its tests: python -m deploy.lab VERB [HOST] [ARGUMENTS...]

Verbs: up [COUNT] [--fresh], down [--keep], status, ssh, inside, cut, heal, freeze, thaw, crash,
start, wipe.  Operators use `inv lab.VERB`.
"""

import os
import sys

from deploy.errors import DeployError
from deploy.foreign_text import visible
from deploy.lab import lab

_LIMIT = 1 << 16  # characters of an error


def main(argv: list[str]) -> int:
    def report_progress(text: str) -> None:
        sys.stderr.write(f"lab: {visible(text)}\n")

    verb, rest = (argv[0], argv[1:]) if argv else ("status", [])
    if verb == "up":
        lab.up(int(rest[0]) if rest else 4, progress=report_progress, fresh="--fresh" in rest)
    elif verb == "down":
        lab.down(progress=report_progress, keep="--keep" in rest)
    elif verb == "ssh":
        ssh = lab.ssh_argv(rest[0])
        os.execvp(ssh[0], [*ssh, *rest[1:]])  # noqa: S606 - becomes the ssh client
    elif verb == "inside":
        result = lab.inside(rest[0], rest[1:])
        sys.stdout.write(result.stdout)
        sys.stderr.write(result.stderr)
        return result.returncode
    elif verb in ("cut", "heal", "freeze", "thaw"):
        getattr(lab, verb)(rest[0])
    elif verb in ("crash", "start", "wipe"):
        getattr(lab, verb)(rest[0], progress=report_progress)
    if verb in ("up", "status"):
        for host in lab.status().hosts:
            sys.stdout.write(
                f"{host.name} {host.address} {host.state} leader={host.leader} "
                f"memory={host.memory_mib}MiB disk={host.disk_mib}MiB\n"
            )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DeployError as error:
        sys.stderr.write(f"{visible(str(error), limit=_LIMIT, keep_lines=True)}\n")
        sys.exit(error.exit_code)
