"""
A host on which `apt_on_host.sh` runs for real: its files are below a temporary directory, and apt,
dpkg and systemd are programs that follow the rules of a test.
"""

import os
import subprocess
import sys

from deploy.provision.apt_runner import AptRunner
from deploy.transport.base import Completed
from deploy.transport.client import HostClient

# One program for all names.  `rules` has lines PATTERN|EXIT STATUS|OUTPUT; the first pattern that
# the command matches counts, and is used up where it begins with `once `.
FAKE = r"""#!/bin/sh
said="${0##*/} $*"
echo "$said" >>"$FAKES/calls"
while IFS='|' read -r pattern code output; do
    once=; case $pattern in 'once '*) once=1 pattern=${pattern#once } ;; esac
    case $said in
    $pattern)
        [ -z "$once" ] || { grep -vxF "once $pattern|$code|$output" "$FAKES/rules" >"$FAKES/left"
            mv "$FAKES/left" "$FAKES/rules"; }
        printf '%b' "$output"
        exit "$code" ;;
    esac
done <"$FAKES/rules"
"""
# systemd runs the transaction to its end before systemd-run returns.
SYSTEMD_RUN = """#!/bin/sh
echo "systemd-run $*" >>"$FAKES/calls"
while [ "${1#-}" != "$1" ]; do shift; done
"$@" || exit 0
"""
# Time does not pass; what a test waits for happens meanwhile.
SLEEP = '#!/bin/sh\n[ ! -e "$FAKES/while-sleeping" ] || . "$FAKES/while-sleeping"\n'
MKDIR_ON_A_FULL_DISK = """#!/bin/sh
PATH=/usr/bin:/bin
mkdir "$@" || exit
for path; do
    case $path in */check/*) ln -s /dev/full "${path%%/check/*}/check/new.sources" ;; esac
done
"""
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


class AptHost:
    """
    Attributes:
        waits, warnings: What an operator was told.
    """

    host = "n1"

    def __init__(self, folder):
        self.root, self.fakes = folder / "root", folder / "fakes"
        for path in ("etc/apt/sources.list.d", "var/lib/dpkg", "var/lib/apt/lists"):
            (self.root / path).mkdir(parents=True)
        self.fakes.mkdir()
        self.rules("systemctl show -p ActiveState --value *|0|inactive\\n")
        for name in ("apt-get", "apt-mark", "dpkg", "dpkg-query", "systemctl"):
            self._program(name, FAKE)
        self._program("systemd-run", SYSTEMD_RUN)
        self._program("sleep", SLEEP)
        self.waits, self.warnings, self._children = [], [], []

    def _program(self, name, text):
        path = self.fakes / name
        path.write_text(text)
        path.chmod(0o755)

    def silence(self, name):
        """
        Let the program *name* write what it says to standard error.
        """
        self._program(name, FAKE.replace("printf '%b' \"$output\"", "printf '%b' \"$output\" >&2"))

    def fill_disk_of_new_sources(self):
        """
        Let each byte of new sources fail with ENOSPC.
        """
        self._program("mkdir", MKDIR_ON_A_FULL_DISK)

    def rules(self, *lines):
        """
        Put *lines* before the rules that are there.
        """
        path = self.fakes / "rules"
        old = path.read_text() if path.exists() else ""
        path.write_text("".join(f"{line}\n" for line in lines) + old)

    def place(self, path, text):
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def read(self, path):
        place = self.root / path
        return place.read_text() if place.exists() else None

    @property
    def calls(self):
        """
        The commands of apt and dpkg that were run, without those that only ask.
        """
        path = self.fakes / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith(("systemctl", "systemd-run"))]

    @property
    def starts(self):
        path = self.fakes / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(line.startswith("systemd-run") for line in lines)

    def hold(self, lock, until_slept):
        """
        Have another process hold *lock*, until the host first waits if *until_slept*.
        """
        path = self.place(lock, "")
        argv = [sys.executable, "-S", "-c", HOLD, str(path)]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "held\n"
        self._children.append(child)
        if until_slept:
            # A process that has ended holds no lock, also before its parent knows of the end.
            script = f"kill {child.pid} 2>/dev/null; rm -f {path}\n"
            (self.fakes / "while-sleeping").write_text(script)
        return child.pid

    def close(self):
        for child in self._children:
            child.kill()
            child.communicate()

    # -- what the runner takes

    def run(self, argv, *, timeout_s, stdin=None, check=True, output_max=2**20):
        env = os.environ | {
            "FAKES": str(self.fakes),
            "PATH": f"{self.fakes}:{os.environ['PATH']}",
        }
        done = subprocess.run(argv, input=stdin or b"", capture_output=True, check=False, env=env)
        out, err = done.stdout.decode(), done.stderr.decode()
        return Completed(tuple(argv), done.returncode, out, err, 0.1)

    def wait(self, text):
        self.waits.append(text)

    def warn(self, about, why, fix):
        self.warnings.append((about, why, fix))

    @property
    def runner(self):
        client = HostClient(self, actor="provision", sudo=False)
        return AptRunner(client, self, root=str(self.root))
