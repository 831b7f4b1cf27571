import pytest

from deploy.errors import InventoryError
from deploy.provision.spec import read_allowed_signers, resolve_tokens
from tests.unit.deploy.inventory.builders import make_fleet


def fleet_with_token(tmp_path, **changes):
    return make_fleet(
        tmp_path,
        {"secrets": {"token": {"env": "TOKEN"}}, "service.api_tokens": ["token"], **changes},
    )


def test_tokens_come_from_where_the_fleet_says(tmp_path):
    """
    A secret's value is taken from the environment that is handed in.
    """
    [token] = resolve_tokens(fleet_with_token(tmp_path), {"TOKEN": "abc-DEF_1.2~+/="})
    assert token.reveal() == "abc-DEF_1.2~+/="
    assert "abc" not in repr(token)


@pytest.mark.parametrize("value", ["two words", "a,b", 'a"b', "a$b", "naïve", "a\\b", "=a"])
def test_what_can_not_be_a_bearer_token_is_refused(tmp_path, value):
    """
    A token that could break out of the environment file is refused, and not shown.
    """
    with pytest.raises(InventoryError) as caught:
        resolve_tokens(fleet_with_token(tmp_path), {"TOKEN": value})
    assert "secrets.token" in caught.value.what
    assert value not in str(caught.value)


def test_signers_have_to_be_there(tmp_path):
    """
    A fleet whose allowed signers are missing or empty is refused before any host is changed.
    """
    fleet = fleet_with_token(tmp_path)
    with pytest.raises(InventoryError, match="cannot be read"):
        read_allowed_signers(fleet)
    fleet.signing.allowed_signers.parent.mkdir(parents=True)
    fleet.signing.allowed_signers.write_text("# no signer\n\n")
    with pytest.raises(InventoryError, match="names no signer"):
        read_allowed_signers(fleet)
    fleet.signing.allowed_signers.write_text("me ssh-ed25519 AAAA\n")
    assert read_allowed_signers(fleet) == "me ssh-ed25519 AAAA\n"
