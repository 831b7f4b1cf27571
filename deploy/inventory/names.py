"""
The types of the texts in a fleet file: names, addresses, URLs and paths.  Pure.

Each type has a small alphabet, and a text is matched as a whole.  What these types accept needs no
quoting where it becomes an argument; a generated file quotes it all the same (`deploy.quoting`).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator

from deploy.host import names as shared
from deploy.host.names import Name

HOST = Name(
    "host",
    r"(?=.{1,64}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*",
    "a name of lower-case letters, digits, dots and dashes, at most 64 long",
)
USER = Name(
    "user",
    r"[A-Za-z_][A-Za-z0-9_.-]{0,31}",
    "a user name: letters, digits, _ . -, a letter or _ first, 32 characters at most",
)
SECRET = Name(
    "secret",
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}",
    "a name of letters, digits, _ . -, at most 64 long",
)
VARIABLE = Name(
    "variable",
    r"[A-Za-z_][A-Za-z0-9_.-]{0,63}",
    "a name of letters, digits, _ . -, at most 64 long",
)
SECRET_VARIABLE = Name(
    "environment variable",
    r"SLIPWAY_(?!SUDO_PASSWORD\Z)[A-Z0-9_]{1,56}",
    "an environment variable whose name begins with SLIPWAY_ (capital letters, digits, _)",
)
SUITE = Name(
    "suite",
    r"[a-z0-9][a-z0-9.-]{0,63}(?:/[a-z0-9][a-z0-9.-]{0,63})?",
    "a suite of the archive, such as bookworm or bookworm-updates",
)
COMPONENT = Name(
    "component", r"[a-z0-9][a-z0-9.-]{0,63}", "a component of the archive, such as main"
)
KEYRING = Name(
    "keyring",
    r"(?:/usr/share/keyrings|/etc/apt/keyrings)/[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(?:gpg|asc|pgp)",
    "a keyring on the hosts: /usr/share/keyrings/NAME.gpg or /etc/apt/keyrings/NAME.gpg",
)
PYTHON_RELEASE = Name(
    "Python release", r"3\.[0-9]{1,2}\.[0-9]{1,3}", "a release of Python such as 3.13.15"
)
MIRROR_PATH = Name(
    "file of a mirror",
    r"(?:[A-Za-z0-9][A-Za-z0-9._+-]{0,99}/){0,4}[A-Za-z0-9][A-Za-z0-9._+-]{0,199}\.tar\.gz",
    "the path of a .tar.gz in the mirror: letters, digits and . _ + -",
)
SHA256 = Name("SHA-256", r"[0-9a-f]{64}", "64 hexadecimal digits in lower case")
HOOK = Name(
    "hook",
    r"hooks/[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    "a program in the directory hooks of the repository: hooks/NAME",
)
HEADER = Name(
    "header",
    r"[A-Za-z][A-Za-z0-9-]{0,63}",
    "the name of an HTTP header: letters, digits and dashes, at most 64 long",
)
HOST_DIRECTORY = Name(
    "directory",
    r"(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,63}){1,8}",
    "an absolute path on hosts: names of letters, digits, . _ -, such as /data/slipway",
)
PREFIX = Name(
    "prefix",
    r"/?[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,63}){0,7}",
    "a prefix of keys: names of letters, digits, . _ -, joined by /",
)

_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\.?"
)
_MAILBOX = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?")
_ZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # an interface: 15 bytes in Linux
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_URL = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)"
                  r"(?::(?P<port>[0-9]+))?(?P<path>/[A-Za-z0-9._~/+-]*)?")  # fmt: skip
_BROADCAST = IPv4Address("255.255.255.255")
_URL_MAX, _PATH_MAX, _TEXT_MAX = 300, 1024, 256
_PATH_SIGNS = frozenset("._-/@+,=: ")


def parse_address(text: str) -> str:
    """
    Return *text*, which is an IP address or a DNS name; an IPv6 address may have a zone.

    Raises:
        ValueError: It is neither.
    """
    if not _is_address(text):
        raise ValueError("should be an IP address or a DNS name")
    if (address := _ip_address(text)) and not _is_of_one_host(address):
        raise ValueError("should be the IP address of one host, or a DNS name")
    if isinstance(address, IPv6Address) and address.is_link_local and address.scope_id is None:
        raise ValueError(f"should name the interface of a link-local address: {text}%eth0")
    return text


def canonical_address(text: str) -> str:
    """
    Return the one spelling of an address: 2001:DB8:0::1 and 2001:db8::1 are the same host, and so
    are 192.0.2.1 and ::ffff:192.0.2.1, and gpu.example.com and GPU.example.com.
    """
    address = _ip_address(text)
    return text.lower().removesuffix(".") if address is None else str(address)


def _ip_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _is_of_one_host(address: IPv4Address | IPv6Address) -> bool:
    return not (address.is_unspecified or address.is_multicast or address == _BROADCAST)


def _is_address(text: str) -> bool:
    if not text.isascii():
        return False
    address, percent, zone = text.partition("%")
    try:
        if ":" in address:
            IPv6Address(address)
            return not percent or _ZONE.fullmatch(zone) is not None
        IPv4Address(text)
    except ValueError:
        # What ends in a number is never a DNS name: it is a mistyped IPv4 address, or one that
        # getaddrinfo(3) reads as octal or hexadecimal.
        last = text.removesuffix(".").rpartition(".")[2]
        is_number = re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", last) is not None
        return _DNS_NAME.fullmatch(text) is not None and not is_number
    return True


@dataclass(frozen=True, slots=True)
class Jump:
    """
    A jump host.

    Attributes:
        address: IP address or DNS name, without brackets.
    """

    user: str
    address: str
    port: int = 22

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.user}@{address}" + ("" if self.port == 22 else f":{self.port}")


_JUMP_MEANING = "USER@HOST or USER@HOST:PORT; an IPv6 address needs brackets: USER@[ADDRESS]:PORT"


def parse_jump(text: object) -> Jump:
    """
    Return the jump host of USER@HOST or USER@HOST:PORT; an IPv6 address stands in brackets.

    Raises:
        ValueError: *text* has another form.
    """
    if isinstance(text, Jump):
        return text
    match = re.fullmatch(
        r"(?P<user>[^@]+)@(?:\[(?P<ipv6>[^\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[^:]+))?",
        text if isinstance(text, str) else "",
    )
    if match is None:
        raise ValueError(f"should be {_JUMP_MEANING}")
    address, port = match["ipv6"] or match["name"], match["port"] or "22"
    is_bracketed_ipv6 = match["ipv6"] is None or ":" in match["ipv6"]
    if not (is_bracketed_ipv6 and _is_address(address) and _is_port(port)):
        raise ValueError(f"should be {_JUMP_MEANING}")
    parse_address(address)
    try:
        return Jump(USER.parse(match["user"]), address, int(port))
    except ValueError:
        raise ValueError(f"should be {_JUMP_MEANING}; USER is {USER.meaning}") from None


JUMPS_MAX = 4


@dataclass(frozen=True, slots=True)
class JumpChain:
    """
    One or more jump hosts, nearest first.
    """

    jumps: tuple[Jump, ...]

    def __iter__(self) -> Iterator[Jump]:
        return iter(self.jumps)

    def __str__(self) -> str:
        return ",".join(str(jump) for jump in self.jumps)

    @property
    def canonical(self) -> "JumpChain":
        """
        Return the chain with the one spelling of each address, to be compared.
        """
        return JumpChain(
            tuple(replace(jump, address=canonical_address(jump.address)) for jump in self.jumps)
        )


def parse_jumps(value: object) -> JumpChain:
    """
    Return the chain of jump hosts in *value*: one, or several joined by commas, nearest first.

    Raises:
        ValueError: One of them has another form, or there are more than JUMPS_MAX.
    """
    if isinstance(value, JumpChain):
        return value
    parts = value.split(",") if isinstance(value, str) else [value]
    if len(parts) > JUMPS_MAX:
        raise ValueError(f"should be a chain of at most {JUMPS_MAX} jump hosts")
    return JumpChain(tuple(parse_jump(part) for part in parts))


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and int(text) <= 65535


def parse_origin(text: str) -> str:
    """
    Return *text*, which is an origin as browsers send it: SCHEME://HOST or SCHEME://HOST:PORT.

    Raises:
        ValueError: It is not; `*` would let every web page use the service.
    """
    if not _is_url(text, with_path=False):
        raise ValueError("should be an origin: https://HOST or https://HOST:PORT, without a path")
    return text


def parse_proxy(text: str) -> str:
    """
    Return *text*, which is the URL of a proxy.

    Raises:
        ValueError: It is not, or it has a user and a password: all users of a host could read them.
    """
    if not _is_url(text.removesuffix("/"), with_path=False):
        raise ValueError(
            "should be the URL of a proxy without credentials: http://HOST:PORT"
            " (credentials belong into apt's auth.conf on the hosts)"
        )
    return text


def parse_proxy_exception(text: str) -> str:
    """
    Return *text*, which is the name or address of a host, or a domain with a dot in front.

    Raises:
        ValueError: It is neither; apt knows no networks here.
    """
    if not _is_address(text.removeprefix(".")) or "%" in text:
        raise ValueError(
            "should be a host or a domain: mirror.example.com, .example.com, 192.0.2.1"
        )
    return text


def parse_archive(text: str) -> str:
    """
    Return *text*, which is the URL of an apt archive.

    Raises:
        ValueError: It is not of http or https, or it has credentials.
    """
    if not _is_url(text, with_path=True):
        raise ValueError("should be the URL of an archive: https://HOST/PATH, without credentials")
    return text


def parse_mirror(text: str) -> str:
    """
    Return *text*, which is the URL of a mirror of files.

    Raises:
        ValueError: It is not of http or https, or it has credentials.
    """
    if not _is_url(text, with_path=True):
        raise ValueError("should be the URL of a mirror: https://HOST/PATH, without credentials")
    return text


def parse_webhook(text: str) -> str:
    """
    Return *text*, which is the URL of a webhook or the name of a secret that has it.

    Raises:
        ValueError: It is neither, or the URL is not of https or has credentials.
    """
    is_url = text.startswith("https://") and _is_url(text, with_path=True)
    if is_url or re.fullmatch(SECRET.regex, text):
        return text
    raise ValueError(
        "should be https://HOST/PATH without credentials, or a name under secrets"
        " (a URL that is itself a credential belongs into a secret)"
    )


_FRAMING = frozenset({"connection", "content-encoding", "content-length", "content-type", "expect",
                      "host", "keep-alive", "te", "trailer", "transfer-encoding",
                      "upgrade"})  # fmt: skip


def parse_header(text: str) -> str:
    """
    Return *text*, which is the name of an HTTP header that a secret may be sent in.

    Raises:
        ValueError: It is not, or the header says where a message goes or ends.
    """
    if HEADER.parse(text).lower() in _FRAMING or text.lower().startswith("proxy-"):
        raise ValueError("should not be a header of the connection or of the message's body")
    return text


def parse_endpoint(text: str) -> str:
    """
    Return *text*, which is an endpoint of etcd: https://HOST:PORT.

    Raises:
        ValueError: It is not; without TLS only this machine itself may be one, for a tunnel.
    """
    match = _URL.fullmatch(text) if _is_url(text, with_path=False) else None
    is_here = match is not None and match["host"] in ("127.0.0.1", "[::1]")
    if match is None or match["port"] is None or not (match["scheme"] == "https" or is_here):
        raise ValueError(
            "should be an endpoint: https://HOST:PORT"
            " (http only for a tunnel that ends at 127.0.0.1 or [::1])"
        )
    return text


def parse_directory_url(text: str) -> str:
    """
    Return *text*, which is the URL of an ACME server's directory.

    Raises:
        ValueError: It is not of https, or has credentials.
    """
    if not (text.startswith("https://") and _is_url(text, with_path=True)):
        raise ValueError("should be the URL of an ACME directory: https://HOST/PATH")
    return text


def parse_mailbox(text: str) -> str:
    """
    Return *text*, which is an e-mail address.

    Raises:
        ValueError: It is not.
    """
    local, at, domain = text.rpartition("@")
    if not (at and _MAILBOX.fullmatch(local) and _DNS_NAME.fullmatch(domain)):
        raise ValueError("should be an e-mail address: NAME@DOMAIN")
    return text


def is_public_name(text: str) -> bool:
    """
    Return whether an ACME server may issue a certificate for *text*, an address or DNS name.

    An IP address and a name without a dot have none.
    """
    name = text.removesuffix(".")
    return _is_address(text) and _DNS_NAME.fullmatch(text) is not None and _is_dotted(name)


def _is_dotted(name: str) -> bool:
    try:
        IPv4Address(name)
    except ValueError:
        return "." in name
    return False


def _is_url(text: str, *, with_path: bool) -> bool:
    match = _URL.fullmatch(text) if len(text) <= _URL_MAX else None
    if match is None or (match["path"] is not None and not with_path):
        return False
    if match["port"] is not None and not _is_port(match["port"]):
        return False
    if ".." in (match["path"] or "").split("/"):
        return False
    return _is_address(match["host"].removeprefix("[").removesuffix("]"))


def check_path(value: object) -> object:
    """
    Return *value*, a path; text that is no plain path is refused.

    Raises:
        ValueError: It has a character that a shell, OpenSSH or Python would expand or interpret.
    """
    if not isinstance(value, str):
        return value  # the schema refuses it
    text = value
    rest = text.removeprefix("~/")
    if not rest or len(text) > _PATH_MAX or rest.startswith("-"):
        raise ValueError(f"should be a path of 1 to {_PATH_MAX} characters that begins without -")
    if not all(character.isalnum() or character in _PATH_SIGNS for character in rest):
        raise ValueError(
            "should be a path of letters, digits, spaces and . _ - / @ + , = :"
            " (~/ at its start is the home directory; variables are not expanded)"
        )
    return text


def expand_path(path: Path) -> Path:
    """
    Return *path*, with `~/` expanded to the home of the user who runs the command.

    Raises:
        ValueError: That user has no home directory.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("should not begin with ~: the user has no home directory") from None


# What lies there is the system's, or gone after a boot.
_NOT_FOR_DATA = frozenset({"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "root",
                           "run", "sbin", "sys", "tmp", "usr"})  # fmt: skip
_OWN_PLACES = ("/opt/slipway", "/var/lib/slipway")


def parse_host_directory(text: str) -> str:
    """
    Return *text*, which is a directory for data on hosts.

    Raises:
        ValueError: It is not, or it belongs to the system or to slipway.
    """
    names = HOST_DIRECTORY.parse(text).split("/")[1:]
    is_below_own = any(f"{text}/".startswith(f"{place}/") for place in _OWN_PLACES)
    if names[0] in _NOT_FOR_DATA or names[:2] in (["var", "tmp"], ["var", "run"]) or is_below_own:
        raise ValueError("should be a directory of a data disk, such as /data/slipway")
    return text


def parse_text(text: str) -> str:
    """
    Return *text*, which is one line that prints as it is.

    Raises:
        ValueError: It has control characters, invisible ones, or too many characters.
    """
    if not text.isprintable() or len(text) > _TEXT_MAX:
        raise ValueError(f"should be one line of visible text, {_TEXT_MAX} characters at most")
    return text


def _type(parse: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(parse)


HostName = Annotated[str, _type(HOST.parse)]
UserName = Annotated[str, _type(USER.parse)]
SecretName = Annotated[str, _type(SECRET.parse)]
VariableName = Annotated[str, _type(VARIABLE.parse)]
SecretVariable = Annotated[str, _type(SECRET_VARIABLE.parse)]
RowName = Annotated[str, _type(shared.ROW.parse)]
Identity = Annotated[str, _type(shared.IDENTITY.parse)]
Address = Annotated[str, _type(parse_address)]
Origin = Annotated[str, _type(parse_origin)]
ProxyUrl = Annotated[str, _type(parse_proxy)]
ProxyException = Annotated[str, _type(parse_proxy_exception)]
ArchiveUrl = Annotated[str, _type(parse_archive)]
MirrorUrl = Annotated[str, _type(parse_mirror)]
MirrorPath = Annotated[str, _type(MIRROR_PATH.parse)]
PythonRelease = Annotated[str, _type(PYTHON_RELEASE.parse)]
Sha256 = Annotated[str, _type(SHA256.parse)]
Suite = Annotated[str, _type(SUITE.parse)]
Component = Annotated[str, _type(COMPONENT.parse)]
Keyring = Annotated[str, _type(KEYRING.parse)]
Text = Annotated[str, _type(parse_text)]
JumpHosts = Annotated[JumpChain, PlainValidator(parse_jumps), PlainSerializer(str)]
Endpoint = Annotated[str, _type(parse_endpoint)]
KeyPrefix = Annotated[str, _type(PREFIX.parse)]
WebhookTarget = Annotated[str, _type(parse_webhook)]
HeaderName = Annotated[str, _type(parse_header)]
DirectoryUrl = Annotated[str, _type(parse_directory_url)]
Mailbox = Annotated[str, _type(parse_mailbox)]
HookName = Annotated[str, _type(HOOK.parse)]
HostDirectory = Annotated[str, _type(parse_host_directory)]
FilePath = Annotated[Path, BeforeValidator(check_path), AfterValidator(expand_path)]
