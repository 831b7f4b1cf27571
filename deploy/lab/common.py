"""
The common layer: files that all hosts share, on top of the base tree and below each host's disk.

Their content comes from this machine: keys, package sources, resolver, certificates.
"""

import shutil
from pathlib import Path

from deploy.errors import hide_passwords
from deploy.lab import keys
from deploy.lab.config import LabConfig
from deploy.lab.sources import CA_BUNDLE, Sources

INIT = "/usr/local/sbin/lab-init"

# nspawn mounts cgroup v1 controllers read-only; MemoryMax=, TasksMax=, CPUQuota= and DevicePolicy=
# then have no effect, and systemd reports no error. The script makes them writable before systemd
# starts. A v2 tree is writable already.
# A container survives a killed nspawn; setpriv ends it with nspawn.
# systemd 256 and 257 refuse to boot with cgroup v1 without the word; 258 and later always refuse.
_INIT_SCRIPT = """\
#!/bin/sh
for controller in memory pids cpu cpuacct cpu,cpuacct blkio devices; do
    [ ! -d "/sys/fs/cgroup/$controller" ] ||
        mount -o remount,rw,bind "/sys/fs/cgroup/$controller" 2>/dev/null
done
exec setpriv --pdeathsig KILL /usr/lib/systemd/systemd "$@" SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
"""

# With VERBOSE, sshd logs one line for each command; tests count commands by these lines.
_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
LogLevel VERBOSE
MaxSessions 50
MaxStartups 200
"""

# Disks are disposable, so dpkg need not sync. Documentation would only take space.
_DPKG = """\
force-unsafe-io
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
"""

ENABLED = {
    "multi-user.target.wants": "systemd-networkd.service",
    "sockets.target.wants": "systemd-networkd.socket",
}
# Units that would start by themselves and disturb a measurement or a test.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "man-db.timer",
    "systemd-networkd-wait-online.service",
)


def write_common(config: LabConfig, sources: Sources) -> None:
    """
    Replace the common layer.  Call it only while no host's disk is mounted.
    """
    tree = config.common.with_name("common.new")
    shutil.rmtree(tree, ignore_errors=True)
    # Overlayfs takes the owner and mode of a folder from its topmost layer, so the folders here
    # must have those of the base: 0755, owned by root.
    authorized = keys.user_key(config).with_suffix(".pub").read_text()
    _write(tree / "root/.ssh/authorized_keys", authorized, mode=0o600)
    (tree / "root").chmod(0o700)
    (tree / "root/.ssh").chmod(0o700)
    _write(tree / "etc/ssh/sshd_config.d/lab.conf", _SSHD)
    _write(tree / INIT[1:], _INIT_SCRIPT, mode=0o755)
    _write(tree / "etc/dpkg/dpkg.cfg.d/lab", _DPKG)
    _write(tree / "etc/resolv.conf", resolver(Path("/etc/resolv.conf")))
    _write_settings(tree / "etc/apt/apt.conf.d/90lab", sources.apt_settings)
    if sources.apt_sources:
        _write_settings(tree / "etc/apt/sources.list", sources.apt_sources)
    _write(tree / "etc/pip.conf", sources.pip_config, mode=0o600)
    _copy_credentials(tree)
    _copy_certificates(tree)
    units = tree / "etc/systemd/system"
    for folder, unit in ENABLED.items():
        (units / folder).mkdir(parents=True, exist_ok=True)
        (units / folder / unit).symlink_to(f"/lib/systemd/system/{unit}")
    for unit in MASKED:
        (units / unit).symlink_to("/dev/null")
    shutil.rmtree(config.common, ignore_errors=True)
    tree.rename(config.common)


def resolver(path: Path, upstream: Path = Path("/run/systemd/resolve/resolv.conf")) -> str:
    """
    Return a resolv.conf for hosts, from the machine's own.

    Hosts cannot reach a resolver on the machine's loopback (systemd-resolved).

    Args:
        path: The machine's resolv.conf.
        upstream: Servers that the machine's loopback resolver uses; returned in its place.
    """
    text = path.read_text() if path.exists() else ""
    servers = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver ")]
    is_loopback = all(server.startswith("127.") or server == "::1" for server in servers)
    return upstream.read_text() if is_loopback and upstream.exists() else text


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=mode)
    path.write_text(text)
    path.chmod(mode)


def _write_settings(path: Path, text: str) -> None:
    # A mirror or a proxy of this machine may have a password in its URL; apt reads it as root.
    _write(path, text, mode=0o600 if hide_passwords(text) != text else 0o644)


def _copy_credentials(tree: Path) -> None:
    auth = Path("/etc/apt/auth.conf")
    for path in (auth, *auth.with_name("auth.conf.d").glob("*.conf")):
        if path.is_file():
            _write(tree / path.relative_to("/"), path.read_text(), mode=0o600)


def _copy_certificates(tree: Path) -> None:
    bundle = Path(CA_BUNDLE)
    if bundle.exists():
        _write(tree / CA_BUNDLE[1:], bundle.read_text())
    # Also into the source folder of update-ca-certificates: a package may run it on a host.
    for path in Path("/usr/local/share/ca-certificates").glob("**/*.crt"):
        _write(tree / path.relative_to("/"), path.read_text())
