"""
uv for hosts: the program in the wheel for their platform, whatever runs on this machine.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import CommandFailed, InventoryError
from deploy.private_files import private_directory, write_private
from deploy.wheelhouse.fetch import DEFAULT_CACHE, REQUIREMENTS, local_path

UV_LOCK = "uv.lock"
_PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64")
_TIMEOUT_S = 600.0
_PROGRAM = re.compile(r"^# program: sha256:([0-9a-f]{64}) ([0-9]+) bytes$", re.MULTILINE)
_PIN = re.compile(r"^(uv==[0-9.]+) \\\n    (--hash=sha256:[0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class UvProgram:
    """
    Attributes:
        path: Where it is, or will be, on this machine.
        sha256: Of the program.
        size: In bytes.
        pin: Requirement with the hash of the wheel that has it.
    """

    path: Path
    sha256: str
    size: int
    pin: str

    @property
    def is_fetched(self) -> bool:
        # Only a program with this hash gets the name; hosts verify it again.
        return self.path.is_file() and self.path.stat().st_size == self.size


@dataclass(frozen=True, slots=True)
class UvWheel:
    pin: str
    program: bytes


def uv_program(*, cache: Path = DEFAULT_CACHE, requirements: Path = REQUIREMENTS) -> UvProgram:
    """
    Return the uv that hosts get; fetches nothing.

    Raises:
        InventoryError: The lock of uv is not valid.
    """
    text = (requirements / UV_LOCK).read_text(encoding="utf-8")
    program, pin = _PROGRAM.search(text), _PIN.search(text)
    if program is None or pin is None:
        raise InventoryError(
            f"requirements/{UV_LOCK} is not the lock of uv",
            why="it should have a line `# program: sha256:... BYTES bytes` and one pin with a hash",
            fix="python -m deploy.wheelhouse.renew uv.lock",
        )
    folder = local_path(cache).resolve()
    path = folder / f"uv-{program[1]}"
    return UvProgram(path, program[1], int(program[2]), " ".join(pin.groups()))


def ensure_uv(uv: UvProgram) -> None:
    """
    Fetch the wheel of *uv* and place its program, unless it is there.

    Raises:
        CommandFailed: pip could not fetch it, or the program in it has another hash.
    """
    if uv.is_fetched:
        return
    folder = private_directory(uv.path.parent)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
        program = fetch_uv_wheel(uv.pin, Path(name)).program
    if (hashlib.sha256(program).hexdigest(), len(program)) != (uv.sha256, uv.size):
        raise _refused("the program in the wheel is not the one that requirements/uv.lock names")
    write_private(uv.path, program)


def fetch_uv_wheel(lock: str, folder: Path) -> UvWheel:
    """
    Fetch the wheel of uv for hosts into *folder*.

    Args:
        lock: Text that pins uv, with the hashes of its wheels; of other projects too.

    Raises:
        CommandFailed: pip could not fetch it, or it has no program.
    """
    entry = re.search(r"^uv==\S+(?: \\\n +--hash=\S+| --hash=\S+)+", lock, re.MULTILINE)
    if entry is None:
        raise _refused("the lock pins no uv")
    (folder / UV_LOCK).write_text(f"{entry[0]}\n", encoding="utf-8")
    argv = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--implementation", "py", "--abi", "none"),
        *(option for platform in _PLATFORMS for option in ("--platform", platform)),
        *("--dest", str(folder), "--requirement", str(folder / UV_LOCK)),
    ]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _refused(f"pip did not end within {_TIMEOUT_S:.0f} s") from None
    wheels = sorted(folder.glob("uv-*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise _refused(" / ".join(lines[-4:]) or f"pip exited {done.returncode}")
    content = wheels[0].read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    version = entry[0].split()[0]
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            program = wheel.read(f"{version.replace('==', '-')}.data/scripts/uv")
    except (KeyError, zipfile.BadZipFile) as error:
        raise _refused(f"{wheels[0].name} has no program: {error}") from None
    return UvWheel(pin=f"{version} --hash=sha256:{digest}", program=program)


def uv_lock_text(wheel: UvWheel) -> str:
    """
    Return the text of the lock of uv.
    """
    pin, option = wheel.pin.split()
    digest = hashlib.sha256(wheel.program).hexdigest()
    return (
        "# uv for hosts: the program in the wheel for Linux, x86_64.  Made from control.lock with\n"
        "#   python -m deploy.wheelhouse.renew uv.lock\n"
        f"# program: sha256:{digest} {len(wheel.program)} bytes\n"
        f"{pin} \\\n    {option}\n"
    )


def _refused(why: str) -> CommandFailed:
    return CommandFailed(
        "uv for the hosts could not be fetched",
        why=why,
        fix="check this machine's pip configuration (pip config list): index, find-links, network",
    )
