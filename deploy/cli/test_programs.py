"""
Programs of other projects that the tests run, brought to this machine where apt can.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

_LIMIT_S = 600.0
_LEFT = "of inv test while apt installs haproxy; delete this file if no inv test runs"
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
        with _services_not_started():
            is_installed = _apt([["apt-get", "update"], install], None, progress)
        if is_installed and shutil.which("systemctl", path=_path()):
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
        libraries = next((folder / "root").glob("usr/lib/*/libwrap.so.0")).parent
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
    """
    if policy.exists():
        yield
        return
    try:
        policy.write_text(f"#!/bin/sh\n# {_LEFT}\nexit 101\n")  # "action forbidden by policy"
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink(missing_ok=True)


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
