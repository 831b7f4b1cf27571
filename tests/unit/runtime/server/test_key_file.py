"""
The file of API keys: what the host program writes is read, what is none is refused.
"""

import hashlib
import json

import pytest

from deploy.host.api_keys import file_of
from deploy.host.protocol import ApiKey, KeySecret
from runtime.server.key_file import MAX_FILE_BYTES, parse_keys

TOKEN = b"sk-slipway-one"


def digest_of(token):
    return hashlib.sha256(token).hexdigest()


def document(**key):
    plain = {"name": "web", "secrets": [{"sha256": digest_of(TOKEN)}]}
    return json.dumps({"format": 1, "version": 3, "keys": [plain | key]}).encode()


def test_what_the_host_program_writes_is_what_the_runtime_reads():
    """
    Every field, in the very bytes.
    """
    secret = KeySecret(digest_of(TOKEN), 5, 99)
    key = ApiKey("web", 2, 5, (secret,), ("glm/4",), 60, 9000, 7, 2, 3)
    ring = parse_keys(file_of(2, (ApiKey("old", 1, 5, ()), key)))

    found, hashed = ring.find(TOKEN)
    assert (ring.version, len(ring)) == (2, 1)
    assert (found.name, found.models, found.weight, found.priority) == ("web", ("glm/4",), 7, 2)
    assert (found.requests_per_minute, found.tokens_per_minute) == (60, 9000)
    assert found.concurrency == 3
    assert hashed.expires_at == 99


def test_unknown_fields_are_those_of_a_newer_release():
    assert parse_keys(document(region="eu")).find(TOKEN)


@pytest.mark.parametrize("token", [b"", b"sk-slipway-two", TOKEN + b" ", TOKEN[:-1], b"x" * 10**6])
def test_other_tokens_are_found_nowhere(token):
    assert parse_keys(document()).find(token) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{torn",
        b"[]",
        b"[" * 100_000,
        b'{"format": 2, "version": 1, "keys": []}',
        b'{"format": 1, "version": 0, "keys": []}',
        b'{"format": 1, "version": 1}',
        b'{"format": 1, "version": 1, "keys": {}}',
        b"x" * (MAX_FILE_BYTES + 1),
        document(name="a b"),
        document(name="web\n"),
        document(weight=0),
        document(weight="1"),
        document(priority=10),
        document(concurrency=0),
        document(requests_per_minute=0),
        document(secrets=[{"sha256": "A" * 64}]),
        document(secrets=[{"sha256": digest_of(TOKEN), "expires_at": "soon"}]),
        document(secrets=[{"sha256": digest_of(TOKEN)}] * 2),
    ],
    ids=lambda content: ascii(content[:40]),
)
def test_what_is_no_list_is_refused_without_its_content(content):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_keys(content)
    assert digest_of(TOKEN) not in str(caught.value)
    assert len(str(caught.value)) < 1000
