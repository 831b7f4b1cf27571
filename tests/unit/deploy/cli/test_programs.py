"""
What `inv test` brings to the machine before it runs pytest; apt is played by scripts.
"""

import os
import subprocess
from pathlib import Path

import pytest

from deploy.cli import test_programs as programs

# Notes its words; `download` leaves a package, which the next script unpacks.
APT = """#!/bin/sh
echo "apt-get $*" >>{log}
case "$1" in
    {fails}) echo 'E: no route' >&2; exit 100;;
    download) touch openssh-server_1_amd64.deb;;
    install)
        cat {folder}/../policy-rc.d >>{log}
        printf '#!/bin/sh\n' >{folder}/haproxy; chmod 755 {folder}/haproxy;;
esac
"""
DPKG = """#!/bin/sh
mkdir -p $3/usr/lib/x86_64-linux-gnu $3/usr/sbin
touch $3/usr/lib/x86_64-linux-gnu/libwrap.so.0
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """
    Return a function that makes a machine of root with apt, whose command *fails* fails.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("sh", "touch", "mkdir", "chmod", "cat"):
        (folder / program).symlink_to(f"/bin/{program}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(programs, "_path", lambda: str(folder))
    policy = tmp_path / "policy-rc.d"
    real = programs._services_not_started
    monkeypatch.setattr(programs, "_services_not_started", lambda: real(policy))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("SLIPWAY_SSHD", raising=False)

    def make(fails="none"):
        log = tmp_path / "log"
        for name, text in (("apt-get", APT), ("dpkg-deb", DPKG)):
            script = folder / name
            script.write_text(text.format(log=log, fails=fails, folder=folder))
            script.chmod(0o755)
        return log

    return make


def provide(tmp_path, said):
    return programs.provide_test_programs(tmp_path / "programs", said.append)


def test_haproxy_is_installed_and_sshd_unpacked(machine, tmp_path):
    """
    Once: a second run has both.  sshd is never installed, which would start it.
    """
    log, said = machine(), []
    wrapper = str(tmp_path / "programs" / "sshd")
    assert provide(tmp_path, said) == {"SLIPWAY_SSHD": wrapper}
    assert log.read_text().splitlines() == [
        "apt-get update",
        "apt-get install --yes --no-install-recommends haproxy",
        "#!/bin/sh",
        f"# {programs._LEFT}",
        f"[ ! -e /proc/{os.getpid()} ] || exit 101",  # of the policy: haproxy is not started
        "apt-get download openssh-server libwrap0",
    ]
    assert "root/usr/sbin/sshd" in Path(wrapper).read_text()
    assert os.access(wrapper, os.X_OK)
    assert len(said) == 2
    assert provide(tmp_path, said) == {"SLIPWAY_SSHD": wrapper}
    assert len(log.read_text().splitlines()) == 6
    assert not (tmp_path / "policy-rc.d").exists()


def test_without_the_package_index_the_tests_run_all_the_same(machine, tmp_path):
    """
    Those that need the programs are skipped.
    """
    machine(fails="update | download")
    said = []
    assert provide(tmp_path, said) == {}
    assert "apt-get update failed, tests that need it are skipped: ['E: no route']" in said


@pytest.mark.parametrize("fails", ["none", "install"])
@pytest.mark.parametrize("own", [None, "#!/bin/sh\nexit 104\n"])
def test_a_policy_about_starts_is_as_before_afterwards(machine, tmp_path, fails, own):
    """
    Also where apt fails.
    """
    policy = tmp_path / "policy-rc.d"
    if own:
        policy.write_text(own)
    machine(fails=fails)
    provide(tmp_path, [])
    assert (policy.read_text() if policy.exists() else None) == own


def policy_of(process):
    return f"#!/bin/sh\n# {programs._LEFT}\n[ ! -e /proc/{process} ] || exit 101\n"


def test_a_policy_that_a_killed_run_has_left_forbids_nothing_and_is_deleted(machine, tmp_path):
    """
    It kept every package of the machine from starting its service, for ever.
    """
    ended = subprocess.run(["/bin/sh", "-c", "echo $$"], capture_output=True, check=True, text=True)
    policy = tmp_path / "policy-rc.d"
    policy.write_text(policy_of(ended.stdout.strip()))
    assert subprocess.run(["/bin/sh", policy], check=False).returncode == 0
    log = machine()

    provide(tmp_path, [])

    assert f"[ ! -e /proc/{os.getpid()} ] || exit 101" in log.read_text().splitlines()
    assert not policy.exists()
    policy.write_text(policy_of(os.getpid()))  # of another inv test, which runs
    assert subprocess.run(["/bin/sh", policy], check=False).returncode == 101
    (tmp_path / "bin/haproxy").unlink()
    provide(tmp_path, [])
    assert policy.read_text() == policy_of(os.getpid())


def test_where_the_policy_cannot_be_written_nothing_is_installed(machine, tmp_path, monkeypatch):
    """
    As on a read-only /usr: the tests that need the programs are skipped.
    """
    log, said = machine(), []
    real = os.open

    def refuses(path, *more, **named):
        if Path(path).name == "policy-rc.d":
            raise OSError(30, "Read-only file system", str(path))
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", refuses)
    provide(tmp_path, said)
    assert any("Read-only file system" in line for line in said)
    assert not any("install" in line for line in log.read_text().splitlines())


def test_packages_without_the_library_of_sshd_are_no_traceback(machine, tmp_path):
    machine()
    (tmp_path / "bin/dpkg-deb").write_text("#!/bin/sh\n")
    said = []
    assert provide(tmp_path, said) == {}
    assert "no libwrap.so.0" in said[-1]


@pytest.mark.parametrize("status", [0, 1])
def test_haproxy_is_not_started_at_the_next_boot(machine, tmp_path, status):
    log = machine()
    script = tmp_path / "bin/systemctl"
    script.write_text(f'#!/bin/sh\necho "systemctl $*" >>{log}\nexit {status}\n')
    script.chmod(0o755)
    said = []
    provide(tmp_path, said)
    assert "systemctl disable --quiet haproxy" in log.read_text().splitlines()
    assert any("the next boot starts haproxy" in line for line in said) == bool(status)


def test_an_ordinary_user_installs_nothing(machine, tmp_path, monkeypatch):
    log = machine()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert provide(tmp_path, []) == {}
    assert not log.exists()
