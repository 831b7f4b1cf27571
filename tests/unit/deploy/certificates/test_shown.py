"""
The certificate in a host's status: read, bounded, and only shown.
"""

import base64

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.certificates.shown import shown_certificate
from tests.unit.deploy.certificates.builders import DAY, NOW, make_authority, make_leaf


def text_of(leaf):
    return base64.b64encode(leaf.public_bytes(Encoding.DER)).decode()


def test_it_has_names_issuer_and_end():
    """
    Days are whole ones, and negative after the end.
    """
    leaf, _ = make_leaf(make_authority("company"), names=("a.example", "b.example"))
    shown = shown_certificate(text_of(leaf))
    assert shown.names == ("a.example", "b.example")
    assert shown.issuer == "CN=company"
    assert shown.not_after == leaf.not_valid_after_utc
    assert shown.days_left(NOW) == 90
    assert shown.days_left(NOW + 91 * DAY) == -1


def test_names_of_a_hostile_host_are_made_visible():
    """
    No escape sequence, and no more than a hundred of them.
    """
    names = ["a\x1b[2Jb", *(f"n{n}.example" for n in range(200))]
    shown = shown_certificate(text_of(make_leaf(make_authority(), names=names)[0]))
    assert shown.names[0] == "a\\x1b[2Jb"
    assert len(shown.names) == 100


@pytest.mark.parametrize("text", ["", "nothing", "AAAA", "A" * 10_000_000, "é"])
def test_what_is_no_certificate_is_none(text):
    """
    Not an error: the host has a finding.
    """
    assert shown_certificate(text) is None
