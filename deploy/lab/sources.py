"""
Package sources for hosts, derived from this machine's apt and pip configuration.

Pure, except for `read`, which runs apt's commands and reads pip's files.
"""

import os
import re
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from deploy.lab.commands import run
from deploy.lab.suites import distribution

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

_APT_S = 120.0  # apt may have to read all its lists anew; on a busy machine that takes over 30 s
_TARGET_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
# Settings of fetching.  Not the proxy detection, which is a program that hosts do not have.
_APT_SETTING = re.compile(
    r"Acquire::(?:https?|Retries|ForceIPv[46]|Check-|AllowInsecure|AllowWeak)(?!.*Auto-?Detect)"
)
PIP_KEYS = ("index-url", "extra-index-url", "find-links", "proxy", "trusted-host", "timeout")


@dataclass(frozen=True, slots=True)
class Sources:
    """
    Attributes:
        mirror: Base URL of the archive; None for debootstrap's default.
        http_proxy: Proxy of debootstrap; None for none.
        apt_sources: Content of the hosts' sources.list; empty to keep the file of debootstrap.
        apt_settings: Content of a file in the hosts' apt.conf.d.
        pip_config: Content of the hosts' pip.conf.
    """

    mirror: str | None
    http_proxy: str | None
    apt_sources: str
    apt_settings: str
    pip_config: str


def read(os_release: Mapping[str, str], suite: str) -> Sources:
    """
    Read the configuration of apt and pip on this machine, for hosts of *suite*.
    """
    words = ["apt-get", "indextargets", "--format", _TARGET_FORMAT, "Created-By: Packages"]
    targets = run(words, timeout_s=_APT_S)
    dump = run(["apt-config", "dump"], timeout_s=_APT_S)
    texts = [path.read_text() for path in pip_files(os.environ) if path.is_file()]
    machine = {os_release.get("ID", ""), *os_release.get("ID_LIKE", "").split()}
    is_same = distribution(suite).name in machine
    codename = os_release.get("VERSION_CODENAME", suite)
    entries = archive_entries(targets, codename, suite) if is_same else ()
    settings = apt_settings(dump, os.environ)
    return Sources(
        mirror=next((uri for uri, name, _ in entries if name == suite), None),
        http_proxy=_http_proxy(settings),
        apt_sources="".join(f"deb {uri} {name} {part}\n" for uri, name, part in entries),
        apt_settings=settings,
        pip_config=pip_config(texts, os.environ),
    )


def archive_entries(targets: str, codename: str, suite: str) -> tuple[tuple[str, str, str], ...]:
    """
    Return (URL, suite, component) of each source of the distribution of *suite*.

    Args:
        targets: Output of `apt-get indextargets` in `_TARGET_FORMAT`.  apt leaves a field without a
            value as it is, so the origin of a list that was never fetched reads "$(ORIGIN)".
        codename: The machine's own release.  If it is another one of the same distribution, its
            archive has the hosts' release too.
        suite: The hosts' release.
    """
    wanted = distribution(suite)
    entries = []
    for line in targets.splitlines():
        uri, name, component, origin = line.split("|")
        release, dash, pocket = name.partition("-")
        if release not in {codename, suite} or pocket not in {"", "updates", "security"}:
            continue
        if component not in wanted.components or origin not in {wanted.origin, "$(ORIGIN)", ""}:
            continue
        entry = (uri, f"{suite}{dash}{pocket}", component)
        if entry not in entries:
            entries.append(entry)
    # Without the plain suite it is not the archive, only something with suites of the same form.
    return tuple(entries) if any(name == suite for _, name, _ in entries) else ()


def apt_settings(dump: str, env: Mapping[str, str]) -> str:
    """
    Return the lines of `apt-config dump` that concern fetching, in the format of apt.conf.

    The environment's proxy is used if apt's configuration has none, as apt itself does.
    """
    lines = [
        line
        for line in dump.splitlines()
        if _APT_SETTING.match(line) and not line.endswith((' "";', '::AllowInsecure "0";'))
    ]
    for scheme in ("http", "https"):
        is_configured = any(line.startswith(f"Acquire::{scheme}::Proxy ") for line in lines)
        proxy = env.get(f"{scheme}_proxy") or (scheme == "https" and env.get("HTTPS_PROXY"))
        if proxy and not is_configured:
            lines.append(f'Acquire::{scheme}::Proxy "{proxy}";')
    return "".join(f"{line}\n" for line in lines)


def split_login(url: str) -> tuple[str, str]:
    """
    Return *url* without user and password, and a netrc file with them; empty without a login.
    """
    parts = urlsplit(url)
    if parts.username is None:
        return url, ""
    host = parts.netloc.rpartition("@")[2]
    user, password = unquote(parts.username), unquote(parts.password or "")
    line = f"machine {parts.hostname} login {user} password {password}\n"
    return urlunsplit(parts._replace(netloc=host)), line


def _http_proxy(settings: str) -> str | None:
    match = re.search(r'^Acquire::http::Proxy "(.+)";$', settings, re.MULTILINE)
    return match[1] if match and match[1] != "DIRECT" else None


def pip_files(env: Mapping[str, str]) -> tuple[Path, ...]:
    """
    Return the paths of pip's configuration files; a later file overrides an earlier one.

    Source: pip's user guide, "Configuration", read 2026-07.  `pip config debug` would take 0.5 s.
    """
    home = Path(env.get("HOME") or "/root")
    user = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf")]
    files += [home / ".pip/pip.conf", user / "pip/pip.conf"]
    if venv := env.get("VIRTUAL_ENV"):
        files.append(Path(venv) / "pip.conf")
    if config_file := env.get("PIP_CONFIG_FILE"):
        files.append(Path(config_file))
    return tuple(files)


def pip_config(texts: Sequence[str], env: Mapping[str, str]) -> str:
    """
    Return pip.conf for the hosts: this machine's settings, without paths to its own folders.

    Args:
        texts: Content of the configuration files that exist, in the order of `pip_files`.
        env: Environment; PIP_INDEX_URL and the like override the files.
    """
    values: dict[str, str] = {}
    for text in texts:
        parser = ConfigParser(interpolation=None, strict=False)
        try:
            parser.read_string(text)
        except ConfigParserError:
            continue  # pip itself reports a broken file, and better
        for section in ("global", "install"):
            if parser.has_section(section):
                values |= dict(parser[section])
    for key in PIP_KEYS:
        if value := env.get(f"PIP_{key.upper().replace('-', '_')}"):
            values[key] = value
    lines = ["[global]"]
    for key in PIP_KEYS:
        words = values.get(key, "").split()
        # Hosts do not have this machine's folders.
        if reachable := [word for word in words if not word.startswith(("/", "file:", "~", "."))]:
            lines.append(f"{key} = {' '.join(reachable)}")
    return "\n".join([*lines, f"cert = {CA_BUNDLE}", ""])
