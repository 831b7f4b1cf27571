"""
Every path on a host, the only copy.  Templates, provisioning and the host program read it.
"""

from __future__ import annotations

from pathlib import Path

SLOTS = ("blue", "green")

OPT = "/opt/slipway"
BIN = f"{OPT}/bin"
UV = f"{BIN}/uv"
HOST_PROGRAM = f"{BIN}/slipway-host.pyz"  # deploy/host, run by PYTHON
# Of the distribution's package python3, which provisioning installs.  By its path: the PATH of an
# SSH user may have another python3 first.
PYTHON = "/usr/bin/python3"
WHEELHOUSE = f"{OPT}/wheelhouse"  # WHEELHOUSE/<wheel file name>, sha256-checked, shared by locks
VENVS = f"{OPT}/venvs"  # VENVS/<lock digest>
PYTHONS = f"{OPT}/pythons"  # PYTHONS/<sha256 of the archive>: standalone Pythons
RELEASES = f"{OPT}/releases"  # RELEASES/<bundle digest>
STATE = "/var/lib/slipway"
MODELS = f"{STATE}/models"  # MODELS/<manifest digest>; MODELS/blobs/<sha256>
INCOMING = f"{STATE}/incoming"  # uploads, before they are verified
SLOT_LINKS = f"{STATE}/slots"  # SLOT_LINKS/<slot> -> RELEASES/<bundle digest>
JOURNAL = f"{STATE}/journal.jsonl"
JOURNAL_ARCHIVES = f"{STATE}/journal.d"  # files that it was before
LEASE = f"{STATE}/lease.json"
LOCK = f"{STATE}/lock"  # held by a verb while it changes the host
DESIRED = f"{STATE}/desired.json"  # the desired state of the fleet, as the newest operator wrote it
PENDING = f"{STATE}/pending.json"  # what the host takes back by itself unless it is confirmed
WENT_BACK = f"{STATE}/went-back.json"  # what it took back by itself
CONFIRMED = f"{STATE}/confirmed.json"  # the last change that was confirmed
DEADMAN_TESTED = f"{STATE}/deadman-tested"  # its own way back was tried out, as it is now
DEADMAN_TEST = f"{STATE}/deadman-test.json"  # asks the timer for a sign of life
DEADMAN_FIRED = f"{STATE}/deadman-fired.json"  # the sign
HAPROXY_STATE = f"{STATE}/haproxy.state"
COUNTER = f"{STATE}/counter"  # highest counter of a bundle that was recorded as good
ETC = "/etc/slipway"
RUNTIME_CONFIG = f"{ETC}/runtime.yml"  # 0640 root:slipway
ENVIRONMENT = f"{ETC}/environment"  # 0600 root: secrets, read by systemd
HOST_TOKEN = f"{ETC}/host_token"  # 0600 root: what the host program sends to the runtime
HOST_KEY = f"{ETC}/host_key"  # 0640 root:slipway: its SHA-256, read by the runtime
API_KEYS = f"{ETC}/keys.json"  # 0640 root:slipway: hashes of API keys, read by the runtime
ALLOWED_SIGNERS = f"{ETC}/allowed_signers"
HOST_CONFIG = f"{ETC}/host.json"  # settings of the host program
CERTIFICATES = f"{ETC}/tls"  # 0700 root
CERTIFICATE = f"{CERTIFICATES}/public.pem"  # 0600 root: of the public port, with its key
ACME_MAP = f"{ETC}/acme.map"  # of HAProxy: answers to ACME challenges, by path; empty on the disk
RUN = "/run/slipway"
TMPFILES = "/etc/tmpfiles.d/slipway.conf"  # the directories below RUN
HAPROXY_SOCKET = f"{RUN}/haproxy.sock"
RESERVES = {f"{STATE}/reserve": 4 << 20, f"{ETC}/reserve": 256 << 10}  # bytes, for a full disk
APT = "/etc/apt"
APT_SOURCES = f"{APT}/sources.list.d"
APT_WORK = "/var/lib/slipway-apt"  # 0711 root: the last transaction; not on the disk of STATE
APT_REPLACED = f"{APT_WORK}/replaced"  # copies of the sources that `mirrors.apt` replaced
APT_UNIT = "slipway-apt.service"  # the transaction while it runs
DRIVER_BUILD_UNIT = "slipway-dkms.service"  # the build of a driver's modules while it runs
PACKAGE_UNITS = (APT_UNIT, DRIVER_BUILD_UNIT)  # they go on when their provisioning run is lost
MIRRORS_CA = f"{APT}/slipway-ca.pem"  # what apt, as its own user, trusts for `mirrors.apt`
BOOT_ID = "/proc/sys/kernel/random/boot_id"
USER = "slipway"  # its group reads releases, weights and configuration
HAPROXY_USER = "haproxy"  # of Debian; the sockets of the slots belong to it
BUILD_USER = "slipway-build"  # runs what comes in bundles, in a sandbox
# -I: no module of the SSH user, of the environment or of the current directory.
HOST_COMMAND = (PYTHON, "-I", HOST_PROGRAM)
UNIT = "slipway-runtime@{slot}.service"
SLICE = "slipway.slice"  # of all slots
TORCH_UNIT = "slipway-torch.service"  # compares torch on the GPUs before slots start
HAPROXY_UNIT = "haproxy.service"  # of Debian; slipway writes its configuration
UNITS = "/etc/systemd/system"
DEADMAN_TIMER = "slipway-deadman.timer"  # runs the check of the host's own way back
DEADMAN_SERVICE = "slipway-deadman.service"
DEADMAN_BOOT = "slipway-deadman-boot.service"  # before HAProxy and the slots
DEADMAN_UNITS = (DEADMAN_TIMER, DEADMAN_SERVICE, DEADMAN_BOOT)
BACKEND = "runtime"  # HAProxy backend; its servers are named like the slots
DOOR_BACKEND = "door"  # without its one server in maint, balancers may send requests to the host
DOOR_SERVER = "open"
TIMELY_BACKEND = "timely"  # likewise; its servers are UP where checks are answered in time


def unit(slot: str) -> str:
    """
    Return the systemd unit of *slot*.
    """
    return UNIT.format(slot=slot)


def python_upload(sha256: str) -> str:
    """
    Return the name below INCOMING of the archive of a standalone Python.
    """
    return f"python-{sha256}.tar.gz"


def slot_user(slot: str) -> str:
    """
    Return the user that runs the runtime of *slot*, and nothing else; its group has the same name.
    """
    return f"slipway-{slot}"


def slot_files(slot: str) -> str:
    """
    Return the mount point of the file system of *slot*: in memory, limited, of nobody else.
    """
    return f"{RUN}/private/{slot}"


def slot_mount(slot: str) -> str:
    """
    Return the systemd unit that mounts `slot_files` of *slot*.
    """
    return f"run-slipway-private-{slot}.mount"


def runtime_socket(slot: str) -> str:
    """
    Return the path at which HAProxy and the host program reach the runtime of *slot*.

    Its directory belongs to root: the runtime binds in `slot_files`, and systemd moves the socket.
    """
    return f"{RUN}/{slot}/runtime.sock"


class Layout:
    """
    The paths of one host, as the host program uses them.

    Args:
        root: Prefix of every path; tests pass a temporary directory.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self.opt = self._at(OPT)
        self.bin = self._at(BIN)
        self.uv = self._at(UV)
        self.host_program = self._at(HOST_PROGRAM)
        self.wheelhouse = self._at(WHEELHOUSE)
        self.venvs = self._at(VENVS)
        self.pythons = self._at(PYTHONS)
        self.releases = self._at(RELEASES)
        self.state = self._at(STATE)
        self.models = self._at(MODELS)
        self.blobs = self.models / "blobs"
        self.incoming = self._at(INCOMING)
        self.slot_links = self._at(SLOT_LINKS)
        self.journal = self._at(JOURNAL)
        self.journal_archives = self._at(JOURNAL_ARCHIVES)
        self.lease = self._at(LEASE)
        self.desired = self._at(DESIRED)
        self.pending = self._at(PENDING)
        self.went_back = self._at(WENT_BACK)
        self.confirmed = self._at(CONFIRMED)
        self.deadman_tested = self._at(DEADMAN_TESTED)
        self.deadman_test = self._at(DEADMAN_TEST)
        self.deadman_fired = self._at(DEADMAN_FIRED)
        self.units = self._at(UNITS)
        self.deadman_units = [self.units / name for name in DEADMAN_UNITS]
        self.lock = self._at(LOCK)
        self.stage_lock = self.state / "stage.lock"  # held while a bundle is verified and placed
        self.haproxy_state = self._at(HAPROXY_STATE)
        self.counter = self._at(COUNTER)
        self.etc = self._at(ETC)
        self.runtime_config = self._at(RUNTIME_CONFIG)
        self.environment = self._at(ENVIRONMENT)
        self.host_token = self._at(HOST_TOKEN)
        self.host_key = self._at(HOST_KEY)
        self.api_keys = self._at(API_KEYS)
        self.allowed_signers = self._at(ALLOWED_SIGNERS)
        self.host_config = self._at(HOST_CONFIG)
        self.certificates = self._at(CERTIFICATES)
        self.certificate = self._at(CERTIFICATE)
        self.acme_map = self._at(ACME_MAP)
        self.certificate_lock = self.state / "certificate.lock"  # held while one is replaced
        self.reserves = [self._at(path) for path in RESERVES]
        self.apt = self._at(APT)
        self.apt_sources = self._at(APT_SOURCES)
        self.apt_work = self._at(APT_WORK)
        self.apt_replaced = self._at(APT_REPLACED)
        self.mirrors_ca = self._at(MIRRORS_CA)
        self.run = self._at(RUN)
        self.tmpfiles = self._at(TMPFILES)
        self.haproxy_socket = self._at(HAPROXY_SOCKET)
        self.boot_id = self._at(BOOT_ID)

    def _at(self, path: str) -> Path:
        return Path(self.root) / path.lstrip("/")

    def runtime_socket(self, slot: str) -> Path:
        """
        Return the Unix socket at which the runtime of *slot* is reached.
        """
        return self._at(runtime_socket(slot))

    def release(self, bundle: str) -> Path:
        """
        Return the directory of the release of *bundle*; it exists only once it is whole.
        """
        return self.releases / bundle

    def slot_link(self, slot: str) -> Path:
        """
        Return the symlink of *slot* to the release that runs there.
        """
        return self.slot_links / slot
