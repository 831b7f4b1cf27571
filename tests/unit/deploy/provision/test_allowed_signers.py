"""
What a fleet file names as allowed_signers goes to hosts as signers or not at all.
"""

import os
import subprocess

import paramiko
import pytest

from deploy.errors import InventoryError
from deploy.provision.allowed_signers import parse_signers
from deploy.provision.spec import read_allowed_signers
from tests.unit.deploy.inventory.builders import make_fleet

KEY = paramiko.ECDSAKey.generate()
PUBLIC = f"{KEY.get_name()} {KEY.get_base64()}"


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        (f"ann@x {PUBLIC}", None),
        (f"ann@x,!eve@x,*@y {PUBLIC}", None),
        (f'"ann b@x" {PUBLIC}', None),
        (f'ann@x namespaces="slipway-bundle" {PUBLIC}', None),
        (f'ann@x namespaces="a,b",valid-before="20300101" {PUBLIC}', None),
        (f"ann@x cert-authority,valid-after=20200101000000Z {PUBLIC}", None),
        (f"  ann@x\t{PUBLIC}  ann's laptop, bought in May", f"ann@x {PUBLIC}"),
    ],
)
def test_a_signer_is_sent_without_its_comment(line, sent):
    """
    Principals, options, type and key are what ssh-keygen reads of a line.
    """
    assert parse_signers(f"# our signers\n\n{line}\n") == f"{sent or line}\n"


def private_key(folder):
    path = folder / "id"
    KEY.write_private_key_file(str(path))
    return path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "s3cret-token",
        "[default]\naws_secret_access_key = s3cret",
        "machine x login y password s3cret",
        "root:$6$s3cret:19000:0:99999:7:::",
        "ann@x ssh-ed25519 s3cret",
        f"ann@x ssh-ed25519 {KEY.get_base64()}",  # the key is of another type
        f"ann@x {PUBLIC}\ns3cret",
        f"ann@x surprise {PUBLIC}",
        "x" * (2 << 20),
    ],
)
def test_a_file_with_any_other_line_is_refused_and_not_quoted(tmp_path, text):
    """
    The error has the number of the line, and nothing of its text.
    """
    error = refusal(tmp_path, text)
    assert "s3cret" not in str(error)
    assert "is not a list of signers" in error.what


def test_a_private_key_is_refused(tmp_path):
    """
    The file that an attacker would name first.
    """
    text = private_key(tmp_path)
    error = refusal(tmp_path, text)
    assert not any(line in str(error) for line in text.splitlines() if line)


def test_a_pipe_is_refused(tmp_path):
    """
    Reading it would wait for ever.
    """
    fleet = make_fleet(tmp_path)
    fleet.signing.allowed_signers.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(fleet.signing.allowed_signers)
    with pytest.raises(InventoryError, match="cannot be read"):
        read_allowed_signers(fleet)


def refusal(tmp_path, text):
    fleet = make_fleet(tmp_path)
    fleet.signing.allowed_signers.parent.mkdir(parents=True, exist_ok=True)
    fleet.signing.allowed_signers.write_text(text)
    with pytest.raises(InventoryError) as caught:
        read_allowed_signers(fleet)
    return caught.value


def test_ssh_keygen_reads_what_is_sent(tmp_path):
    """
    A signature is verified with the text that hosts get.
    """
    key = tmp_path / "key"
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    public = key.with_suffix(".pub").read_text()
    signers = tmp_path / "signers"
    signers.write_text(parse_signers(f'# x\nann@x namespaces="n" {public}'))
    (tmp_path / "text").write_text("text")
    subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-q", "-f", key, "-n", "n", tmp_path / "text"], check=True
    )
    argv = ["ssh-keygen", "-Y", "verify", "-f", signers, "-I", "ann@x", "-n", "n"]
    with (tmp_path / "text").open() as text:
        verified = subprocess.run(
            [*argv, "-s", tmp_path / "text.sig"], stdin=text, capture_output=True, check=False
        )
    assert verified.returncode == 0, verified.stderr
