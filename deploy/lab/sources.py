"""
Where packages come from: what the machine's own apt and pip say, as text for the hosts.

Pure but for `read`, which asks.
"""

import os
import re
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.commands import run

SUITE = "bookworm"
COMPONENTS = frozenset({"main", "contrib", "non-free", "non-free-firmware"})
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

_TARGET_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
# Settings that say how packages are fetched. A program that finds a proxy lies on the machine only.
_APT_SETTING = re.compile(
    r"Acquire::(?:https?|Retries|ForceIPv[46]|Check-|AllowInsecure|AllowWeak)(?!.*Auto-?Detect)"
)
PIP_KEYS = ("index-url", "extra-index-url", "find-links", "proxy", "trusted-host", "timeout")


@dataclass(frozen=True, slots=True)
class Sources:
    """
    Attributes:
        mirror: Base address of the Debian archive; None: debootstrap's own default.
        http_proxy: For what fetches packages; None: no proxy.
        apt_sources: The hosts' sources.list; empty: what debootstrap wrote.
        apt_settings: The hosts' apt.conf.
        pip_config: The hosts' pip.conf.
    """

    mirror: str | None
    http_proxy: str | None
    apt_sources: str
    apt_settings: str
    pip_config: str


def read(os_release: Mapping[str, str]) -> Sources:
    """
    Ask apt and pip of this machine.
    """
    targets = run(["apt-get", "indextargets", "--format", _TARGET_FORMAT, "Created-By: Packages"])
    dump = run(["apt-config", "dump"])
    texts = [path.read_text() for path in pip_files(os.environ) if path.is_file()]
    entries = debian_entries(targets, os_release.get("VERSION_CODENAME", SUITE))
    settings = apt_settings(dump, os.environ)
    return Sources(
        mirror=next((uri for uri, suite, _ in entries if suite == SUITE), None),
        http_proxy=_http_proxy(settings),
        apt_sources="".join(f"deb {uri} {suite} {part}\n" for uri, suite, part in entries),
        apt_settings=settings,
        pip_config=pip_config(texts, os.environ),
    )


def debian_entries(targets: str, codename: str) -> tuple[tuple[str, str, str], ...]:
    """
    Return (address, suite, component) of the Debian archive, for the hosts' release.

    Args:
        targets: `apt-get indextargets` in our format; a field that apt does not know stays as
            it was written, so the origin of a list never fetched reads "$(ORIGIN)".
        codename: The machine's own Debian release; another release's archive has ours too.
    """
    entries = []
    for line in targets.splitlines():
        uri, suite, component, origin = line.split("|")
        release, dash, pocket = suite.partition("-")
        if release not in {codename, SUITE} or pocket not in {"", "updates", "security"}:
            continue
        if component not in COMPONENTS or origin not in {"Debian", "$(ORIGIN)", ""}:
            continue
        entry = (uri, f"{SUITE}{dash}{pocket}", component)
        if entry not in entries:
            entries.append(entry)
    # Ubuntu has suites of the same form and another origin; without a plain suite it is not Debian.
    return tuple(entries) if any(suite == SUITE for _, suite, _ in entries) else ()


def apt_settings(dump: str, env: Mapping[str, str]) -> str:
    """
    Return what of `apt-config dump` says how packages are fetched, as lines of apt.conf.

    A proxy of the environment counts where apt names none, as it does for apt itself.
    """
    lines = [
        line
        for line in dump.splitlines()
        if _APT_SETTING.match(line) and not line.endswith((' "";', '::AllowInsecure "0";'))
    ]
    for scheme in ("http", "https"):
        named = any(line.startswith(f"Acquire::{scheme}::Proxy ") for line in lines)
        proxy = env.get(f"{scheme}_proxy") or (scheme == "https" and env.get("HTTPS_PROXY"))
        if proxy and not named:
            lines.append(f'Acquire::{scheme}::Proxy "{proxy}";')
    return "".join(f"{line}\n" for line in lines)


def _http_proxy(settings: str) -> str | None:
    match = re.search(r'^Acquire::http::Proxy "(.+)";$', settings, re.MULTILINE)
    return match[1] if match and match[1] != "DIRECT" else None


def pip_files(env: Mapping[str, str]) -> tuple[Path, ...]:
    """
    Return where pip looks for its configuration; a later one goes before an earlier.

    Source: pip's user guide, "Configuration", read 2026-07. Asking pip itself takes half a second.
    """
    home = Path(env.get("HOME") or "/root")
    user = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf")]
    files += [home / ".pip/pip.conf", user / "pip/pip.conf"]
    if venv := env.get("VIRTUAL_ENV"):
        files.append(Path(venv) / "pip.conf")
    if named := env.get("PIP_CONFIG_FILE"):
        files.append(Path(named))
    return tuple(files)


def pip_config(texts: Sequence[str], env: Mapping[str, str]) -> str:
    """
    Return the machine's pip configuration for the hosts, less what lies in the machine's folders.

    Args:
        texts: The configuration files that exist, in the order of `pip_files`.
        env: PIP_INDEX_URL and the like; goes before all files.
    """
    values: dict[str, str] = {}
    for text in texts:
        parser = ConfigParser(interpolation=None, strict=False)
        try:
            parser.read_string(text)
        except ConfigParserError:
            continue  # pip says so itself, better, whenever it is run
        for section in ("global", "install"):
            if parser.has_section(section):
                values |= dict(parser[section])
    for key in PIP_KEYS:
        if value := env.get(f"PIP_{key.upper().replace('-', '_')}"):
            values[key] = value
    lines = ["[global]"]
    for key in PIP_KEYS:
        words = values.get(key, "").split()
        # A folder of the machine's is not there on a host.
        if reachable := [word for word in words if not word.startswith(("/", "file:", "~", "."))]:
            lines.append(f"{key} = {' '.join(reachable)}")
    return "\n".join([*lines, f"cert = {CA_BUNDLE}", ""])
