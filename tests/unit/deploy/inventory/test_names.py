import pytest

from deploy.host.names import FLEET, IDENTITY, MODEL_NAME, RELEASE, ROW, VERSION
from deploy.inventory.names import (
    COMPONENT,
    HEADER,
    HOOK,
    HOST,
    KEYRING,
    PREFIX,
    SECRET,
    SECRET_VARIABLE,
    SUITE,
    USER,
    VARIABLE,
    Jump,
    check_path,
    parse_address,
    parse_archive,
    parse_header,
    parse_jump,
    parse_origin,
    parse_proxy,
    parse_text,
    parse_webhook,
)

NAMES = (VERSION, RELEASE, FLEET, MODEL_NAME, ROW, IDENTITY, HOST, USER, SECRET, VARIABLE,
         SECRET_VARIABLE, SUITE, COMPONENT, KEYRING, HOOK, HEADER, PREFIX)  # fmt: skip
VALID = {
    "version": "v1.3.0+cu130", "release": "20261126T010203-v1.3.0", "fleet": "gpu-prod",
    "model name": "zai-org/glm-4-9b", "row": "torch-2.13-cu130", "signer": "release@example.com",
    "host": "gpu-01.rack-2", "user": "deploy_1.x", "secret": "api_token", "variable": "rack",
    "environment variable": "SLIPWAY_API_TOKEN", "suite": "bookworm-security/updates",
    "hook": "hooks/change-window.py", "header": "X-Api-Key",
    "prefix": "/fleets/gpu-prod.1",
    "component": "non-free-firmware", "keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES, ids=lambda kind: kind.kind)
def test_a_name_is_matched_as_a_whole(kind):
    """
    No line end after it, no digit of another script, no character around it.
    """
    good = VALID[kind.kind]
    assert kind.parse(good) == good
    for bad in (f"{good}\n", f"\n{good}", f"{good}\x00", f"{good} ", f"{good}\u0661", f"-{good}",
                f"{good}%h", f"{good}$x", f"{good}'", f"{good};", good * 200, ""):  # fmt: skip
        with pytest.raises(ValueError):
            kind.parse(bad)


@pytest.mark.parametrize(
    "text",
    ["192.0.2.1", "::1", "2001:db8::1", "fe80::1%eth0", "fe80::1%br-0.100", "n1",
     "GPU-1.example.com",
     "example.com.", "1a.example"],
)  # fmt: skip
def test_an_address_may_have_a_zone(text):
    """
    Addresses and DNS names, as they are written.
    """
    assert parse_address(text) == text


@pytest.mark.parametrize(
    "text",
    ["fe80::1", "fe80::1%", "fe80::1%eth0\n", "fe80::1%a b", "fe80::1%h%h", "fe80::1%eth0;x",
     "192.0.2.1%eth0", "n1%eth0", "0x7f000001", "0x7f.1", "0177.1", "10.0.0", "a b", "a\n",
     "\u0661.2.3.4", "a_b", "a..b", "-a", "[::1]", "a:22", "a" * 300],
)  # fmt: skip
def test_an_address_of_another_form_is_refused(text):
    """
    Also what getaddrinfo would read as a number in hexadecimal or octal.
    """
    with pytest.raises(ValueError):
        parse_address(text)


def test_a_jump_host_is_parsed_once():
    """
    Into user, address and port; it is written back as it was said.
    """
    assert parse_jump("ops@bastion") == Jump("ops", "bastion", 22)
    assert parse_jump("ops@[fe80::1%eth0]:2222") == Jump("ops", "fe80::1%eth0", 2222)
    for text in ("ops@bastion", "ops@192.0.2.1:2222", "ops@[2001:db8::1]"):
        assert str(parse_jump(text)) == text


@pytest.mark.parametrize("text", ["j@0.0.0.0", "j@[ff02::1]", "j@255.255.255.255", "j@[::]"])
def test_a_jump_host_is_one_host(text):
    with pytest.raises(ValueError, match="one host"):
        parse_jump(text)


@pytest.mark.parametrize(
    "text",
    ["bastion", "ops@", "@bastion", "ops@b:0", "ops@b:65536", "ops@b:022", "ops@b:\u0662",
     "ops@::1",
     "ops@[bastion]", "ops@[::1", "o p@b", "ops@b\n", "ops@b:22\n", "-ops@b", "a@b@c", 5, None],
)  # fmt: skip
def test_a_jump_host_of_another_form_is_refused(text):
    """
    With the form to write.
    """
    with pytest.raises(ValueError, match="USER@HOST"):
        parse_jump(text)


@pytest.mark.parametrize("parse", [parse_origin, parse_proxy, parse_archive])
@pytest.mark.parametrize(
    "text",
    ["http://u:p@h:1", "http://h:0", "http://h:70000", "ftp://h", "file:///etc", "http://h?x",
     "http://h#x", "http://h\n", "http://", "h", "*", "null", "http://h%41", "http://[::1",
     "http://h/../x", "HTTP://h"],
)  # fmt: skip
def test_a_url_with_anything_else_is_refused(parse, text):
    """
    Credentials, other schemes, queries, encoded characters.
    """
    with pytest.raises(ValueError):
        parse(text)


def test_urls_are_accepted():
    """
    Negative control; only an archive has a path.
    """
    assert parse_origin("https://chat.example.com:8443") == "https://chat.example.com:8443"
    assert parse_proxy("http://[2001:db8::1]:3142/") == "http://[2001:db8::1]:3142/"
    assert parse_archive("https://m.example.com/debian") == "https://m.example.com/debian"
    with pytest.raises(ValueError):
        parse_origin("https://chat.example.com/")


@pytest.mark.parametrize("text", ["https://h.example.com/a/b", "https://h", "notify_url", "h"])
def test_a_webhook_is_a_url_or_a_secret(text):
    """
    A text with a scheme is a URL; a name is the secret that has it.
    """
    assert parse_webhook(text) == text


@pytest.mark.parametrize(
    "text",
    ["http://h/x", "https://u:p@h/x", "https://h/x?key=1", "https://h/x#y", "https://h/%0d%0aX: y",
     "https://h/x\n", "https://h/../x", "https://", "HTTPS://h/x", "file:///etc", "", "a b", "a/b"],
)  # fmt: skip
def test_another_webhook_is_refused(text):
    """
    No TLS, credentials, queries, encoded characters.
    """
    with pytest.raises(ValueError, match="secret"):
        parse_webhook(text)


@pytest.mark.parametrize(
    "text", ["Host", "content-length", "Transfer-Encoding", "Proxy-Authorization"]
)
def test_a_header_that_frames_a_message_is_refused(text):
    """
    A secret cannot move where a message goes or ends.
    """
    assert parse_header("Authorization") == "Authorization"
    with pytest.raises(ValueError, match="connection"):
        parse_header(text)


@pytest.mark.parametrize("text", ["~/.ssh/id", "keys/id", "/srv/my keys/id", "/home/jos\u00e9/id"])
def test_a_path_may_start_at_home(text):
    """
    Letters of any script and spaces are part of paths.
    """
    assert check_path(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "~", "~root/x", "$HOME/x", "a\nb", "a\x00", "-x", "a%h", 'a"b', "a'b", "a\\b", "a`b"],
)
def test_a_path_that_something_would_expand_is_refused(text):
    """
    Variables, other users' homes, tokens of OpenSSH, quotes and control characters.
    """
    with pytest.raises(ValueError):
        check_path(text)


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "\x1b[2J", "\u202ex", "a\u200bb", "x" * 300])
def test_a_text_that_does_not_print_as_it_is_is_refused(text):
    """
    Control characters, bidi marks and what is invisible.
    """
    with pytest.raises(ValueError):
        parse_text(text)
