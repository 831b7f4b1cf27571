"""
Programs of other projects that the tests run, brought to this machine where apt can.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

_LIMIT_S = 600.0
_LEFT = "of inv test while apt installs haproxy; forbids nothing once that process has ended"
_PROCESS = re.compile(r"/proc/(\d+) ")  # in a policy of ours
_SSHD_PACKAGES = ("openssh-server", "libwrap0")


def provide_test_programs(folder: Path, progress: Callable[[str], None]) -> dict[str, str]:
    """
    Install HAProxy, and unpack sshd in *folder*; return the environment for the tests.

    Only root on Debian and what is derived from it can; elsewhere, or where apt fails, the tests
    that need the programs are skipped, each with the reason.  sshd is not installed: the package
    would start it, and the machine would listen on port 22.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return {}
    if not shutil.which("haproxy", path=_path()):
        progress("installing a package that the tests need on this machine: haproxy")
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "haproxy"]
        try:
            with _services_not_started():
                _apt([["apt-get", "update"], install], None, progress)
        except OSError as error:
            progress(f"apt-get install failed, tests that need it are skipped: {error}")
        has_systemd = shutil.which("systemctl", path=_path())
        if has_systemd and shutil.which("haproxy", path=_path()):  # also where apt failed later
            disable = ["systemctl", "disable", "--quiet", "haproxy"]
            _apt([disable], None, progress, or_else="the next boot starts haproxy")
    if shutil.which("sshd", path=_path()) or "SLIPWAY_SSHD" in os.environ:
        return {}
    wrapper = folder / "sshd"
    if not wrapper.exists():
        progress(f"unpacking the sshd that the tests run in {folder}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unpack = f"for package in *.deb; do dpkg-deb -x $package {folder}/root; done"
        download = ["apt-get", "download", *_SSHD_PACKAGES]
        if not _apt([download, ["sh", "-c", unpack]], folder, progress):
            return {}
        found = next((folder / "root").glob("usr/lib/*/libwrap.so.0"), None)
        if found is None:
            progress(f"no libwrap.so.0 in {folder}: tests that need sshd are skipped")
            return {}
        libraries = found.parent
        wrapper.write_text(
            f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {folder}/root/usr/sbin/sshd "$@"\n'
        )
        wrapper.chmod(0o700)
    return {"SLIPWAY_SSHD": str(wrapper)}


@contextlib.contextmanager
def _services_not_started(policy: Path = Path("/usr/sbin/policy-rc.d")) -> Iterator[None]:
    """
    Keep packages from starting their services, as invoke-rc.d documents it; a policy that the
    machine has stays.

    Ours forbids as long as this process runs: one that a killed run has left forbids nothing, and
    is deleted by the next run.

    Raises:
        OSError: It cannot be written.
    """
    _delete_left(policy)
    # 101: "action forbidden by policy".
    text = f"#!/bin/sh\n# {_LEFT}\n[ ! -e /proc/{os.getpid()} ] || exit 101\n"
    try:
        descriptor = os.open(policy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except FileExistsError:
        yield
        return
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), 0o755)
            file.write(text)
        yield
    finally:
        with contextlib.suppress(OSError):
            if policy.read_text() == text:
                policy.unlink()


def _delete_left(policy: Path) -> None:
    """
    Delete a policy of ours whose process has ended.
    """
    with contextlib.suppress(OSError, UnicodeError):
        text = policy.read_text()
        process = _PROCESS.search(text)
        if _LEFT in text and process and not Path("/proc", process[1]).exists():
            policy.unlink()


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def _apt(
    commands: list[list[str]],
    folder: Path | None,
    progress: Callable[[str], None],
    or_else: str = "tests that need it are skipped",
) -> bool:
    """
    Run *commands* in *folder* up to the first that fails; return whether none did.

    Args:
        or_else: What one that fails leads to.
    """
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PATH": _path()}
    for argv in commands:
        try:
            subprocess.run(
                argv, cwd=folder, env=env, capture_output=True, text=True, timeout=_LIMIT_S,
                check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            progress(f"{' '.join(argv[:2])} failed, {or_else}: {said}")
            return False
    return True
