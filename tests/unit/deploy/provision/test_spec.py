import pytest

from deploy.errors import InventoryError
from deploy.provision.spec import read_allowed_signers, resolve_tokens
from tests.unit.deploy.inventory.builders import make_fleet


def fleet_with_token(tmp_path, **changes):
    return make_fleet(
        tmp_path,
        {"secrets": {"token": {"env": "TOKEN"}}, "service.api_tokens": ["token"], **changes},
    )


def test_tokens_come_from_the_named_variables(tmp_path):
    """
    A secret's value is read from the environment that is passed in.
    """
    [token] = resolve_tokens(fleet_with_token(tmp_path), {"TOKEN": "abc-DEF_1.2~+/="})
    assert token.reveal() == "abc-DEF_1.2~+/="
    assert "abc" not in repr(token)


@pytest.mark.parametrize("value", ["two words", "a,b", 'a"b', "a$b", "naïve", "a\\b", "=a"])
def test_an_invalid_bearer_token_is_refused(tmp_path, value):
    """
    It could break the environment file; the error does not show it.
    """
    with pytest.raises(InventoryError) as caught:
        resolve_tokens(fleet_with_token(tmp_path), {"TOKEN": value})
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
