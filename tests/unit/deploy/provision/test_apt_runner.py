"""
Changes of packages and sources, by the script that hosts run.
"""

import pytest

from deploy.errors import CommandFailed, PreconditionError, TransportError
from deploy.host import layout
from deploy.provision import operations
from deploy.provision.apt_packages import AptTransaction, Packages
from deploy.provision.apt_runner import DRIVER_TRANSACTION_S, TRANSACTION_S, digest_of
from deploy.provision.apt_sources import AptSources, Archive, OsRelease
from deploy.provision.driver.resource import NvidiaDriver
from deploy.provision.run import DEADLINE_S, DRIVER_S
from tests.unit.deploy.provision.apt_host import AptHost
from tests.unit.deploy.provision.driver.test_convergence import new_host

HAPROXY = AptTransaction(install=("haproxy",))
DEBIAN = OsRelease(os_id="debian", codename="bookworm")
MIRROR = Archive(named="mirrors.apt[0]", uris=("https://m.example.com/d",), distribution="debian")
SOURCES = AptSources(sources=(MIRROR,))
LISTS_LOCK = "var/lib/apt/lists/lock"
WORK = layout.APT_WORK.lstrip("/")
UNSIGNED = "E: The repository 'http://vendor.example x InRelease' is not signed."


@pytest.fixture
def host(tmp_path):
    host = AptHost(tmp_path)
    yield host
    host.close()


def test_packages_are_changed_in_one_transaction_of_systemd(host):
    """
    dpkg is completed first, nothing asks, and apt may remove nothing.
    """
    host.runner.change(HAPROXY)
    first, update, check, install = host.calls[-4:]
    assert host.calls[0].startswith("dpkg --audit")
    assert (first, host.starts) == ("dpkg --force-confdef --force-confold --configure -a", 1)
    assert (update.split()[-1], check.split()[-1]) == ("update", "check")
    assert install.endswith("--no-install-recommends --no-remove install haproxy")
    assert "Dpkg::Options::=--force-confold" in install


def test_versions_removals_and_holds_are_one_transaction(host):
    """
    Holds are lifted before, and set after the change; a named version may be an older one.
    """
    wanted = AptTransaction(
        install=("new=1.0-1", "any"), remove=("old",), unhold=("new",), hold=("new",)
    )
    host.runner.change(wanted)
    unhold, install, hold = host.calls[-3:]
    assert (unhold, hold) == ("apt-mark unhold new", "apt-mark hold new")
    assert install.endswith("--allow-downgrades install new=1.0-1 any old-")
    assert "--no-remove" not in install


def test_packages_are_unpacked_again_in_a_transaction_too(host):
    """
    It outlives the connection, and waits for other programs; packages that are gone stay so.
    """
    host.rules(
        "dpkg-query -W -f * python3-minimal|0|installed python3-minimal\\n",
        r"dpkg-query -W -f * python3.\*-minimal|0|installed python3.11-minimal\nconfig-files "
        r"python3.9-minimal\n",
    )
    host.runner.change(Packages(names=("python3",), proxy="http://p:3128").restored_python)
    assert host.starts == 1
    install = host.calls[-1]
    assert install.endswith("--no-remove --reinstall install python3-minimal python3.11-minimal")


def test_a_host_without_the_packages_to_unpack_again_says_so(host):
    with pytest.raises(CommandFailed, match="no such package is installed"):
        host.runner.change(Packages(names=("python3",)).restored_python)
    assert not any(" install " in call for call in host.calls)


def test_a_failure_of_apt_is_an_error_with_its_words(host):
    """
    Nothing is held then, and the next run tries again.
    """
    host.rules("apt-get *install haproxy|100|E: Unable to locate package haproxy\\n")
    with pytest.raises(CommandFailed, match="Unable to locate package haproxy"):
        host.runner.change(HAPROXY.model_copy(update={"hold": ("haproxy",)}))
    assert not any(call.startswith("apt-mark") for call in host.calls)
    host.rules("apt-get *install haproxy|0|")
    host.runner.change(HAPROXY)
    assert host.starts == 2


def test_a_transaction_that_runs_is_followed_not_started_again(host):
    """
    The connection of an earlier run was lost; its transaction ends meanwhile.
    """
    digest = digest_of(HAPROXY)
    host.place(f"{WORK}/digest", f"{digest}\n")
    host.place(f"{WORK}/status", "changing packages: haproxy\n")
    host.rules("once systemctl show -p ActiveState --value *|0|active\\n")
    result = host.root / WORK / "result"
    (host.fakes / "while-sleeping").write_text(f"echo '{digest} 0' >{result}\n")
    host.runner.change(HAPROXY)
    assert (host.starts, host.calls) == (0, [])
    assert "going on with the transaction of an earlier run" in host.waits
    assert any("changing packages: haproxy" in text for text in host.waits)


def test_a_transaction_that_ended_unseen_counts_once(host):
    """
    Its result is taken by the next run; a later run that finds a difference does it again.
    """
    host.place(f"{WORK}/digest", f"{digest_of(HAPROXY)}\n")
    host.place(f"{WORK}/result", f"{digest_of(HAPROXY)} 0\n")
    host.runner.change(HAPROXY)
    assert host.starts == 0
    host.runner.change(HAPROXY)
    assert host.starts == 1


def test_a_lost_answer_repeats_no_transaction(host, monkeypatch):
    """
    The connection ends while the host says that it is done: the next run takes that result.
    """
    run = host.run

    def lossy(argv, **options):
        done = run(argv, **options)
        if "@apt ended" in done.stdout:
            raise TransportError("n1: lost", why="connection reset", fix="again")
        return done

    monkeypatch.setattr(host, "run", lossy)
    with pytest.raises(TransportError):
        host.runner.change(HAPROXY)
    monkeypatch.undo()
    host.runner.change(HAPROXY)
    assert host.starts == 1
    host.runner.change(HAPROXY)
    assert host.starts == 2


def test_another_transaction_is_waited_for(host):
    """
    Its failure is not that of this one.
    """
    host.place(f"{WORK}/digest", "another\n")
    host.place(f"{WORK}/status", "changing packages: x\n")
    host.place(f"{WORK}/result", "another 1\n")
    host.rules("once systemctl show -p ActiveState --value *|0|active\\n")
    host.runner.change(HAPROXY)
    assert host.waits[0].startswith("another transaction of packages runs")
    assert host.starts == 1


def test_a_transaction_of_a_driver_is_followed_for_its_own_time(host, monkeypatch):
    """
    And the whole run may take longer than its longest transaction.
    """
    monkeypatch.setattr(operations, "DRIVER_TRANSACTION_S", 0)
    gpus = new_host()
    disk = NvidiaDriver(wish=gpus.wish)
    while True:
        facts = gpus.look(disk)
        step = disk.next_steps(facts)[0]
        if step.kind == "install":
            break
        gpus.take(step, facts)
    with pytest.raises(CommandFailed) as caught:
        operations.apply_driver(disk, facts, host.runner)
    assert "it still runs after 0 s" in caught.value.why
    assert DEADLINE_S > TRANSACTION_S
    assert DRIVER_S > DRIVER_TRANSACTION_S > TRANSACTION_S


def test_a_transaction_that_was_killed_is_named(host):
    """
    A reboot leaves no result.
    """
    host.place(f"{WORK}/digest", f"{digest_of(HAPROXY)}\n")
    host.rules("once systemctl show -p ActiveState --value *|0|active\\n")
    with pytest.raises(CommandFailed, match="killed, or the host rebooted"):
        host.runner.change(HAPROXY)


@pytest.mark.parametrize(
    "lock",
    [LISTS_LOCK, "var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock", "var/cache/apt/archives/lock"],
)
def test_whoever_holds_a_lock_of_apt_is_waited_for_and_named(host, lock):
    """
    apt itself waits for two of the four.
    """
    pid = host.hold(lock, until_slept=True)
    host.runner.change(HAPROXY)
    [told] = [text for text in host.waits if "waiting, because" in text]
    assert f"(pid {pid}" in told
    assert "python" in told
    assert f"holds /{lock}" in told
    assert host.calls[-1].endswith("install haproxy")


def test_a_lock_that_stays_held_is_an_error_that_names_the_holder(host):
    """
    Nothing of apt was started.
    """
    pid = host.hold(LISTS_LOCK, until_slept=False)
    with pytest.raises(CommandFailed) as caught:
        host.runner.change(HAPROXY, wait_s=2)
    assert "waited 2 s, and still" in caught.value.why
    assert f"pid {pid}" in caught.value.why
    assert "stop it on the host" in caught.value.fix
    assert host.calls == []


def test_cloud_init_is_waited_for(host):
    """
    It writes sources and installs packages at the first boot, also between two locks.
    """
    units = "Id=cloud-config.service\\nActiveState=active\\n\\nId=cloud-final.service\\n"
    host.rules(f"once systemctl show -p Id *|0|{units}ActiveState=inactive\\nJob=77\\n")
    host.runner.change(HAPROXY)
    assert any("cloud-init (cloud-final.service) has not ended" in text for text in host.waits)


def test_apt_is_tried_again_when_another_was_quicker_with_a_lock(host):
    """
    A timer may start between the look and apt.
    """
    taken = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7"
    host.rules(f"once apt-get *update|100|{taken}\\n")
    host.runner.change(HAPROXY)
    assert sum(call.endswith("update") for call in host.calls) == 2
    assert host.warnings == []


def test_an_interrupted_dpkg_is_completed_first(host):
    """
    The operator is told.
    """
    host.rules("dpkg --audit|0|The following packages are only half configured\\n")
    host.runner.change(HAPROXY)
    assert any("completing an interrupted dpkg" in text for text in host.waits)
    configured, updated = (
        next(n for n, call in enumerate(host.calls) if word in call)
        for word in ("--configure -a", "update")
    )
    assert configured < updated


def test_what_dkms_left_half_done_of_a_driver_is_deleted_first(host):
    """
    DKMS gives up on an entry without its source, and the package could never be configured.
    """
    dkms = "var/lib/dkms"
    host.place(f"{dkms}/nvidia-current/535.309.01/6.1.0-56-amd64/x86_64/log/make.log", "")
    whole = host.place(f"{dkms}/nvidia-current-open/550.163.01/build/x", "")
    whole.parents[1].joinpath("source").symlink_to("/usr/src/gone")
    other = host.place(f"{dkms}/zfs/2.1.11/x", "")
    entry = host.root / dkms / "nvidia-current/535.309.01"
    kernel = entry.with_name("kernel-6.1.0-56-amd64-x86_64")
    kernel.symlink_to("535.309.01/6.1.0-56-amd64/x86_64")

    host.runner.change(HAPROXY)

    assert not entry.exists()
    assert kernel.is_symlink()
    assert whole.exists()
    assert other.exists()
    said = "removing an unfinished entry of DKMS: /var/lib/dkms/nvidia-current/535.309.01"
    assert any(said in text for text in host.waits)
    assert any("--configure -a" in call for call in host.calls)


def test_the_reason_of_dkms_is_shown(host):
    """
    dpkg says no more than that a script failed; lines of a terminal end in a carriage return.
    """
    lines = (
        "Error! Bad return status for module build on kernel: 6.1.0-56-amd64\\r\\n"
        "dpkg: error processing package nvidia-kernel-dkms (--configure):\\r\\n"
        "E: Sub-process /usr/bin/dpkg returned an error code (1)\\n"
    )
    host.rules(f"apt-get * install *|100|{lines}\n")
    with pytest.raises(CommandFailed) as caught:
        host.runner.change(HAPROXY)
    assert "Error! Bad return status for module build on kernel: 6.1.0-56-amd64" in caught.value.why
    assert "\\r" not in caught.value.why


def with_vendor(host, *rules):
    """
    Give the host a source of a vendor for which *rules* hold; no update succeeds as a whole.
    """
    vendor = host.place("etc/apt/sources.list.d/vendor.list", "deb http://vendor.example x y\n")
    host.place("etc/apt/sources.list", "deb http://d.example bookworm main\n")
    everything = "apt-get -q -y -o DPkg::Lock::Timeout=5 -o APT::Update::Error-Mode=any update"
    host.rules(f"{everything}|100|{UNSIGNED}\\n", *(rule.format(vendor) for rule in rules))


def test_a_broken_source_of_another_vendor_is_named_and_stops_nothing(host):
    """
    The vendor rotated its key.
    """
    with_vendor(host, f"apt-get *sourcelist={{}} *update|100|{UNSIGNED}\\n")
    host.runner.change(HAPROXY)
    [(about, why, fix)] = host.warnings
    assert about == 'package source "/etc/apt/sources.list.d/vendor.list"'
    assert "is not signed" in why
    assert "not a source of slipway" in fix
    assert (host.root / WORK / "usable/vendor.list").is_symlink()  # apt uses the lists it had
    assert host.calls[-1].endswith("install haproxy")


def test_a_source_that_apt_cannot_parse_is_set_aside(host):
    """
    It would stop every program of apt, whatever the source that has the package.
    """
    malformed = "100|E: Malformed entry 1 in list file vendor.list\\n"
    parse = f"once apt-get *indextargets|{malformed}"
    with_vendor(host, f"apt-get *sourcelist={{}} *update|{malformed}", parse)
    host.place("etc/apt/sources.list", "")
    host.runner.change(HAPROXY)
    assert "Malformed entry" in host.warnings[0][1]
    assert not (host.root / WORK / "usable/vendor.list").is_symlink()
    assert f"sourceparts={host.root}/{WORK}/usable" in host.calls[-1]


def test_our_own_source_must_be_readable(host):
    """
    A broken mirror of the fleet file is an error, whatever the host has elsewhere.
    """
    own = host.place("etc/apt/sources.list.d/slipway.sources", "Types: deb\n")
    with_vendor(host, f"apt-get *sourcelist={own} *update|100|{UNSIGNED}\\n")
    with pytest.raises(CommandFailed, match=r"slipway.sources cannot be read: .*is not signed"):
        host.runner.change(HAPROXY)


def test_sources_are_replaced_once_apt_has_read_them(host):
    """
    The old ones are kept, and come back when the key goes from the fleet file.
    """
    host.place("etc/apt/sources.list", "old\n")
    host.place("etc/apt/sources.list.d/debian.sources", "old deb822\n")
    host.place("etc/apt/sources.list.d/slipway.list", "ancient\n")
    host.place("etc/os-release", 'VERSION_CODENAME="bookworm"\n')
    host.runner.replace_sources(SOURCES, DEBIAN)
    assert host.read("etc/apt/sources.list.d/slipway.sources") == SOURCES.text(DEBIAN)
    for path in ("etc/apt/sources.list", "etc/apt/sources.list.d/debian.sources"):
        assert host.read(path) is None
    assert host.read("etc/apt/sources.list.d/slipway.list") is None
    [update] = host.calls
    assert "Dir::Etc::sourceparts=/dev/null" in update
    assert f"Dir::State::lists={host.root}/{WORK}/check/lists" in update

    host.place("etc/os-release", "VERSION_CODENAME=trixie\n")
    with pytest.raises(CommandFailed, match="are of bookworm, the host runs trixie"):
        host.runner.replace_sources(AptSources(sources=()), DEBIAN)
    assert host.read("etc/apt/sources.list") is None

    host.place("etc/os-release", "VERSION_CODENAME=bookworm\n")
    host.runner.replace_sources(AptSources(sources=()), DEBIAN)
    assert host.read("etc/apt/sources.list") == "old\n"
    assert host.read("etc/apt/sources.list.d/debian.sources") == "old deb822\n"
    assert host.read("etc/apt/sources.list.d/slipway.sources") is None


@pytest.mark.parametrize("has_copies", [False, True])
def test_an_obsolete_source_goes_without_mirrors_too(host, has_copies):
    """
    Also where it was copied when it was replaced: no other source is touched.
    """
    obsolete = "etc/apt/sources.list.d/slipway.list"
    host.place("etc/apt/sources.list", "old\n")
    host.place(obsolete, "ancient\n")
    host.place("etc/os-release", "VERSION_CODENAME=bookworm\n")
    if has_copies:
        host.runner.replace_sources(SOURCES, DEBIAN)
        host.place(obsolete, "ancient\n")
    host.runner.replace_sources(AptSources(sources=()), DEBIAN)
    assert host.read(obsolete) is None
    assert host.read("etc/apt/sources.list") == "old\n"


def test_sources_that_apt_cannot_read_replace_nothing(host):
    """
    The host keeps what it can install from.
    """
    host.place("etc/apt/sources.list", "old\n")
    host.rules("apt-get *update|100|E: Failed to fetch https://m.example.com/d  404\\n")
    with pytest.raises(CommandFailed, match="404"):
        host.runner.replace_sources(SOURCES, DEBIAN)
    assert host.read("etc/apt/sources.list") == "old\n"
    assert host.read("etc/apt/sources.list.d/slipway.sources") is None


def test_sources_that_do_not_fit_on_the_disk_replace_nothing(host):
    """
    apt reads an empty file without an error.
    """
    host.place("etc/apt/sources.list", "old\n")
    host.fill_disk_of_new_sources()
    with pytest.raises(CommandFailed, match="the new sources cannot be written"):
        host.runner.replace_sources(SOURCES, DEBIAN)
    assert host.read("etc/apt/sources.list") == "old\n"
    assert not (host.root / "etc/apt/sources.list.d/slipway.sources").is_symlink()


def test_a_systemd_that_does_not_answer_is_an_error(host):
    """
    Its silence was taken for another transaction that runs, and followed for half an hour.
    """
    said = "System has not been booted with systemd as init system (PID 1).\\n"
    host.rules(f"systemctl show *|1|{said}")
    host.silence("systemctl")
    with pytest.raises(CommandFailed, match="has not been booted with systemd"):
        host.runner.change(HAPROXY, limit_s=2)
    assert host.starts == 0


def test_sources_of_another_distribution_touch_nothing(host):
    """
    They are refused by name, also on a host whose release is only known now.
    """
    with pytest.raises(PreconditionError, match=r"mirrors.apt\[0\].*is for debian.*ubuntu noble"):
        host.runner.replace_sources(SOURCES, OsRelease(os_id="ubuntu", codename="noble"))
    assert host.calls == []
