"""
./inv makes .venv by hash or not at all, and keeps passwords of package indexes to itself.

The real ./inv runs in a copy of the checkout, with programs in place of Python, pip and uv that
write down how they were called.
"""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASSWORD = "s3cret-of-the-index"
INDEX = f"https://reader:{PASSWORD}@index.invalid/simple"

PYTHON = r"""#!/bin/sh
printf '%s\n' "python $*" >>"$CALLS"
[ -z "${SLIPWAY_SUDO_PASSWORD+x}" ] || printf '%s\n' "$SLIPWAY_SUDO_PASSWORD: $*" >>"$HOLDERS"
case $* in
    *platform.system*) echo "$TAG" ;;
    *realpath*) echo "$0" ;;
    -V) echo "Python 3" ;;
    "-m venv"*)
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python
        cp "$FAKES/uv" .venv/bin/uv ;;
    *"pip config get global.index-url") [ -n "$CONFIGURED" ] && echo "$CONFIGURED" ;;
    *"pip config get"*) exit 1 ;;
    *"pip"*" install "*) echo "looking in $INDEX"; exit "$PIP_STATUS" ;;
esac
"""
UV = r"""#!/bin/sh
printf '%s\n' "uv $*" >>"$CALLS"
[ -z "${SLIPWAY_SUDO_PASSWORD+x}" ] || printf '%s\n' "$SLIPWAY_SUDO_PASSWORD: uv" >>"$HOLDERS"
env | grep '^UV_' >>"$ENVIRONMENTS"
echo "uv: looking in $INDEX"
exit "$UV_STATUS"
"""


class Checkout:
    """
    A copy of what ./inv needs, with programs that only write down their calls.
    """

    def __init__(self, folder):
        self.root, self.fakes = folder / "checkout", folder / "fakes"
        self.root.mkdir(mode=0o755)
        self.fakes.mkdir()
        shutil.copy(ROOT / "inv", self.root)
        shutil.copytree(ROOT / "requirements", self.root / "requirements")
        for name in ("python3.11", "python3.12", "python3.13", "python3"):
            self._program(name, PYTHON)
        self._program("uv", UV)
        self.calls_file, self.environments = folder / "calls", folder / "environments"
        self.holders = folder / "holders"
        self.log = self.root / ".slipway" / "venv.log"

    def _program(self, name, text):
        path = self.fakes / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *, tag="3 11 Linux x86_64", uv_status=0, pip_status=0, configured="", **env):
        # Into files: a pipe would stay open until the last `sleep` of ./inv ends.
        with (self.fakes / "out").open("w+") as out, (self.fakes / "err").open("w+") as err:
            status = subprocess.run(
                ["./inv", "matrix"],
                cwd=self.root,
                env={
                    "PATH": f"{self.fakes}:/usr/bin:/bin",
                    "HOME": str(self.root),
                    "FAKES": str(self.fakes),
                    "CALLS": str(self.calls_file),
                    "ENVIRONMENTS": str(self.environments),
                    "HOLDERS": str(self.holders),
                    "TAG": tag,
                    "INDEX": INDEX,
                    "UV_STATUS": str(uv_status),
                    "PIP_STATUS": str(pip_status),
                    "CONFIGURED": configured,
                    **env,
                },
                stdout=out,
                stderr=err,
                timeout=60,
                check=False,
            ).returncode
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(["./inv"], status, out.read(), err.read())

    @property
    def calls(self):
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    @property
    def installs(self):
        return [call for call in self.calls if " install " in call]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def unchecked(installs):
    """
    Return the calls that could install what no lock has a hash for.
    """
    return [
        call
        for call in installs
        if "--require-hashes" not in call or "--only-binary :all:" not in call
    ]


@pytest.mark.parametrize("uv_status", [0, 1], ids=["uv works", "uv fails"])
def test_every_package_is_installed_by_hash(checkout, uv_status):
    """
    Wheels with a hash from the locks, uv and torch included, whichever installer works.
    """
    done = checkout.run(uv_status=uv_status)

    assert done.returncode == 0, done.stderr
    assert unchecked(checkout.installs) == []
    files = {re.search(r"-r (\S+)", call)[1] for call in checkout.installs}
    assert files == {".venv/uv.lock", "requirements/control.lock", "requirements/torch.lock"}


def test_the_command_alone_gets_the_password_for_sudo(checkout):
    """
    Neither pip nor uv; without one the variable is absent.
    """
    done = checkout.run(uv_status=1, SLIPWAY_SUDO_PASSWORD="it's $a")
    assert done.returncode == 0, done.stderr
    assert checkout.holders.read_text() == "it's $a: -m deploy.cli matrix\n"
    checkout.holders.unlink()
    checkout.run()
    assert not checkout.holders.exists()


def test_an_unchecked_install_would_be_noticed(checkout):
    """
    Negative control: the call of an ./inv that leaves a hash check out is reported.
    """
    inv = checkout.root / "inv"
    text = inv.read_text()
    weak = text.replace("--only-binary :all: --require-hashes", "--only-binary :all:")
    assert weak != text
    inv.write_text(weak)
    checkout.run()
    assert unchecked(checkout.installs)


@pytest.mark.parametrize("tag", ["3 12 Linux x86_64", "3 11 Linux aarch64", "3 11 Darwin arm64"])
def test_a_python_without_hashes_stops_before_anything_is_made(checkout, tag):
    """
    Where the lock of torch has no hash for this Python, nothing is installed, and ./inv says why.
    """
    done = checkout.run(tag=tag)

    assert done.returncode == 1
    assert "3 11 Linux x86_64" in done.stderr
    assert tag in done.stderr
    assert "fix: " in done.stderr
    assert checkout.installs == []
    assert not (checkout.root / ".venv").exists()


def test_torch_has_one_hash_for_each_python_that_inv_takes():
    """
    A line `# wheel:` without its hash, or the other way round, would let ./inv start in vain.
    """
    text = (ROOT / "requirements/torch.lock").read_text()
    assert len(re.findall(r"^# wheel: ", text, re.MULTILINE)) == text.count("--hash=sha256:") > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"PIP_INDEX_URL": INDEX},
        {"PIP_EXTRA_INDEX_URL": f"{INDEX} https://other.invalid/*"},
        {"PIP_FIND_LINKS": f"{INDEX} /opt/links"},
        {"configured": INDEX},
    ],
    ids=["index", "more indexes", "links", "file"],
)
def test_a_password_of_an_index_is_in_no_argument(checkout, settings):
    """
    All users of a machine can read the arguments of its processes; uv gets it by a variable.
    """
    done = checkout.run(**settings)

    assert done.returncode == 0, done.stderr
    assert PASSWORD not in "\n".join(checkout.calls)
    assert PASSWORD in checkout.environments.read_text()


def test_a_password_of_an_index_is_in_no_output(checkout):
    """
    Neither the log nor what ./inv prints of it has the user and password of a URL.
    """
    done = checkout.run(uv_status=1, pip_status=1, PIP_INDEX_URL=INDEX)

    assert done.returncode == 1
    assert "https://[hidden]@index.invalid/simple" in done.stderr
    for text in (done.stdout, done.stderr, checkout.log.read_text()):
        assert PASSWORD not in text


def test_the_log_and_its_folder_are_private(checkout):
    """
    0700 and 0600, whatever the umask of the caller is and whatever was there before.
    """
    checkout.log.parent.mkdir(mode=0o777)
    checkout.log.parent.chmod(0o777)
    checkout.log.write_text("old")
    checkout.log.chmod(0o666)
    umask = os.umask(0)
    try:
        assert checkout.run().returncode == 0
    finally:
        os.umask(umask)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in checkout.log.parent.iterdir()}
    assert stat.S_IMODE(checkout.log.parent.stat().st_mode) == 0o700
    assert modes == {"venv.log": 0o600, "venv.lock": 0o600}


@pytest.mark.parametrize("name", [".slipway", ".slipway/venv.lock"])
def test_a_link_in_place_of_a_private_file_is_refused(checkout, tmp_path, name):
    """
    A link would make ./inv write, or change the mode, somewhere else.
    """
    target = tmp_path / "target"
    if name == ".slipway":
        target.mkdir(mode=0o755)
    else:
        (checkout.root / ".slipway").mkdir()
        target.write_text("content")
    (checkout.root / name).symlink_to(target)
    before = target.stat().st_mode

    done = checkout.run()

    assert done.returncode == 1
    assert "symbolic link" in done.stderr
    assert target.stat().st_mode == before
    assert target.is_dir() or target.read_text() == "content"


def test_a_link_in_place_of_the_log_is_replaced(checkout, tmp_path):
    """
    The log is made anew; the file that the link names keeps its content.
    """
    target = tmp_path / "target"
    target.write_text("content")
    (checkout.root / ".slipway").mkdir()
    checkout.log.symlink_to(target)

    assert checkout.run().returncode == 0
    assert target.read_text() == "content"
    assert not checkout.log.is_symlink()


@pytest.mark.parametrize("is_there", [True, False], ids=["another checkout's", "dangling"])
def test_a_link_in_place_of_the_environment_is_refused(checkout, tmp_path, is_there):
    """
    Making an environment clears what is there: behind the link, another checkout's one.
    """
    other = tmp_path / "other"
    if is_there:
        (other / "bin").mkdir(parents=True)
        shutil.copy(checkout.fakes / "python3", other / "bin" / "python")
        (other / "slipway-stamp").write_text(f"venv of {tmp_path}/other-checkout, format 1\n")
    before = sorted(tmp_path.glob("other/**/*"))
    (checkout.root / ".venv").symlink_to(other)

    done = checkout.run()

    assert done.returncode == 1
    assert f".venv is not usable\n  why: it is a symbolic link to {other}" in done.stderr
    assert f"fix: remove the link: rm {checkout.root}/.venv" in done.stderr
    assert sorted(tmp_path.glob("other/**/*")) == before
    assert checkout.installs == []
    assert (checkout.root / ".venv").is_symlink()


def test_a_linked_environment_that_this_checkout_made_is_used(checkout, tmp_path):
    """
    One on another disk is no other checkout's as long as its stamp fits.
    """
    assert checkout.run().returncode == 0
    (checkout.root / ".venv").rename(tmp_path / "elsewhere")
    (checkout.root / ".venv").symlink_to(tmp_path / "elsewhere")
    checkout.calls_file.unlink()

    assert checkout.run().returncode == 0
    assert checkout.installs == []
