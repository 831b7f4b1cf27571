import base64
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.errors import InventoryError
from deploy.inventory.schema import Mirrors
from deploy.provision.spec import read_allowed_signers, read_mirrors_ca, resolve_tokens
from tests.unit.deploy.certificates.builders import make_authority
from tests.unit.deploy.inventory.builders import make_fleet


def fleet_with_token(tmp_path, **changes):
    return make_fleet(
        tmp_path,
        {
            "secrets": {"token": {"env": "SLIPWAY_TOKEN"}},
            "service.api_tokens": ["token"],
            **changes,
        },
    )


def test_tokens_come_from_the_named_variables(tmp_path):
    """
    A secret's value is read from the environment that is passed in.
    """
    [token] = resolve_tokens(fleet_with_token(tmp_path), {"SLIPWAY_TOKEN": "abc-DEF_1.2~+/="})
    assert token.reveal() == "abc-DEF_1.2~+/="
    assert "abc" not in repr(token)


@pytest.mark.parametrize("value", ["two words", "a,b", 'a"b', "a$b", "naïve", "a\\b", "=a"])
def test_an_invalid_bearer_token_is_refused(tmp_path, value):
    """
    It could break the environment file; the error does not show it.
    """
    with pytest.raises(InventoryError) as caught:
        resolve_tokens(fleet_with_token(tmp_path), {"SLIPWAY_TOKEN": value})
    assert "secrets.token" in caught.value.what
    assert value not in str(caught.value)


def test_missing_or_empty_allowed_signers_are_refused(tmp_path):
    """
    Before any host is changed.
    """
    fleet = fleet_with_token(tmp_path)
    with pytest.raises(InventoryError, match="cannot be read"):
        read_allowed_signers(fleet)
    fleet.signing.allowed_signers.parent.mkdir(parents=True)
    fleet.signing.allowed_signers.write_text("# no signer\n\n")
    with pytest.raises(InventoryError, match="names no signer"):
        read_allowed_signers(fleet)
    key = "AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    fleet.signing.allowed_signers.write_text(f"me ssh-ed25519 {key}\n")
    assert read_allowed_signers(fleet) == f"me ssh-ed25519 {key}\n"


PRIVATE_KEY = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n"
    "-----END OPENSSH PRIVATE KEY-----\n"
)


@pytest.mark.parametrize(
    "text",
    [
        PRIVATE_KEY,
        "me ssh-ed25519 AAAA\n" + PRIVATE_KEY,
        "root:x:0:0:root:/root:/bin/bash\n",
        "aws_secret_access_key = hunter2\n",
        "me ssh-ed25519\n",
        "me ssh-dss AAAA\n",
    ],
)
def test_a_file_that_is_no_list_of_signers_is_not_sent_to_hosts(tmp_path, text):
    """
    A fleet file may name any file of the operator; its text goes to hosts.
    """
    fleet = fleet_with_token(tmp_path)
    fleet.signing.allowed_signers.parent.mkdir(parents=True)
    fleet.signing.allowed_signers.write_text(text)
    with pytest.raises(InventoryError, match="is not a list of signers") as caught:
        read_allowed_signers(fleet)
    assert "hunter2" not in str(caught.value)
    assert "b3Blbn" not in str(caught.value)


KEY_TEXTS = {
    kind: base64.b64encode(len(kind).to_bytes(4, "big") + kind.encode() + bytes(36)).decode()
    for kind in ("ssh-ed25519", "ssh-rsa", "sk-ssh-ed25519@openssh.com")
}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("a@x ssh-ed25519 {}", "ssh-ed25519"),
        ('a@x,b@x namespaces="slipway-bundle" ssh-ed25519 {}', "ssh-ed25519"),
        ('*@x,!c@x cert-authority,valid-before="20300101" ssh-rsa {}', "ssh-rsa"),
        ("a@x sk-ssh-ed25519@openssh.com {}", "sk-ssh-ed25519@openssh.com"),
    ],
)
def test_every_form_of_a_signer_is_accepted(tmp_path, line, kind):
    """
    Negative control: principals, options and key types of ssh-keygen(1); comments stay here.
    """
    fleet = fleet_with_token(tmp_path)
    fleet.signing.allowed_signers.parent.mkdir(parents=True)
    signer = line.format(KEY_TEXTS[kind])
    fleet.signing.allowed_signers.write_text(f"# ours\n\n{signer} words of a comment\n")
    assert read_allowed_signers(fleet) == f"{signer}\n"


def test_the_authorities_of_mirrors_are_sent_as_certificates_alone(tmp_path):
    """
    All users of a host can read the file: a key, or another file, is refused.
    """
    path = tmp_path / "ca.pem"
    mirrors = Mirrors(ca_bundle=path)
    fleet = make_fleet(tmp_path).model_copy(update={"mirrors": mirrors})
    pair = make_authority().issue(["m.example.com"], datetime.now(UTC))
    certificates = "".join(c.public_bytes(Encoding.PEM).decode() for c in pair.chain)
    for text, why in (
        (None, "No such file"),
        ("", "no certificate"),
        ("# root:x:0:0\n", "no certificate"),
        (pair.pem.reveal(), "a private key"),
        (certificates + "#" * 2**20, "more than 1 MiB"),
    ):
        if text is not None:
            path.write_text(text)
        with pytest.raises(InventoryError, match=why):
            read_mirrors_ca(fleet)
    path.write_text(f"# of the mirrors\n{certificates}")
    assert read_mirrors_ca(fleet) == certificates
    assert read_mirrors_ca(make_fleet(tmp_path)) is None
