"""
Reads what a package index says about torch: its releases, wheels and metadata.

The index is the one that pip uses on this machine.  Nothing of it is kept: no address, no path.
"""

import base64
import http.client
import io
import json
import re
import ssl
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from email.parser import HeaderParser
from typing import Any

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from deploy.errors import CommandFailed, hide_passwords
from deploy.versions.catalog import numbers

_JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691
_TIMEOUT_S = 60.0
_LARGEST_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_FIX = "check this machine's pip configuration (pip config list) and its network, then try again"


@dataclass(frozen=True, slots=True)
class Index:
    """
    A package index.

    Attributes:
        url: Of its simple API; may have a user and a password.
        certificates: File with the authorities to trust; None: those of the system.
    """

    url: str
    certificates: str | None = None

    @classmethod
    def of_pip(cls, run_pip: Callable[..., str]) -> "Index":
        """
        Return the index of pip's configuration, its environment variables included.

        Args:
            run_pip: Returns what pip prints for its arguments.
        """
        values = {}
        for line in run_pip("config", "list").splitlines():
            name, _, value = line.partition("=")
            # Later scopes go before earlier ones: the environment is the last.
            values[name.rpartition(".")[2] if name.startswith(":env:") else name] = value.strip("'")
        url, certificates = (
            values.get(key) or values.get(f"global.{key}") for key in ("index-url", "cert")
        )
        return cls((url or _default_url()).rstrip("/"), certificates)

    def get(self, url: str, **headers: str) -> bytes:
        """
        Return what the server sends for *url*.

        Args:
            headers: Of the request.

        Raises:
            CommandFailed: It could not be read.
        """
        parts = urllib.parse.urlsplit(url)
        headers = {"User-Agent": "slipway", **headers}
        if parts.username and parts.scheme in ("http", "https"):
            pair = f"{parts.username}:{parts.password or ''}"
            user = urllib.parse.unquote(pair).encode()
            headers["Authorization"] = f"Basic {base64.b64encode(user).decode()}"
            url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        try:
            context = ssl.create_default_context(cafile=self.certificates)
            request = urllib.request.Request(url, headers=headers)  # noqa: S310
            with urllib.request.urlopen(  # noqa: S310
                request, timeout=_TIMEOUT_S, context=context
            ) as answer:
                content: bytes = answer.read(_LARGEST_BYTES)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CommandFailed(
                f"{hide_passwords(url)}: not readable", why=str(error), fix=_FIX
            ) from None
        return content


def _default_url() -> str:
    """
    Return the index that pip takes where its configuration names none.

    Raises:
        CommandFailed: This version of pip keeps it elsewhere.
    """
    try:
        from pip._internal.models.index import PyPI

        return str(PyPI.simple_url)
    except (ImportError, AttributeError):
        raise CommandFailed(
            "no package index is configured",
            why="pip's configuration has no index-url, and pip's own default is not known",
            fix="pip config set global.index-url URL",
        ) from None


def read_torch(index: Index, *, first: str) -> dict[str, Any]:
    """
    Return the newest patch release of each torch minor from *first* on.

    Raises:
        CommandFailed: The index could not be read, or says something that makes no sense.
    """
    page = index.get(f"{index.url}/torch/", Accept=_JSON)
    try:
        files = json.loads(page)["files"]
        releases = torch_releases(files, first=first)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refused(f"its page of torch is not in the JSON format of PEP 691: {error}") from None
    rows = []
    for minor, wheels in releases.items():
        newest = wheels[-1].version
        x86 = [w for w in wheels if w.version == newest and w.machine == "x86_64"]
        wheel = replace(x86[0], url=urllib.parse.urljoin(f"{index.url}/torch/", x86[0].url))
        rows.append(torch_row(minor, wheels, _metadata(index, wheel)))
    return {"torch": rows}


def _metadata(index: Index, wheel: "Wheel") -> str:
    """
    Return METADATA of *wheel*: the file beside it, or else the member of the archive.

    Raises:
        CommandFailed: Neither can be read.
    """
    try:
        content = index.get(f"{wheel.url}.metadata")  # PEP 658
    except CommandFailed:
        try:
            with zipfile.ZipFile(_RemoteFile(index, wheel.url, wheel.size)) as archive:
                content = archive.read(f"torch-{wheel.version}.dist-info/METADATA")
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise _refused(f"the wheel of torch {wheel.version} has no METADATA: {error}") from None
    return content.decode(errors="replace")


class _RemoteFile(io.BytesIO):
    """
    A file on a server, read in blocks where `zipfile` reads it.
    """

    def __init__(self, index: Index, url: str, size: int) -> None:
        super().__init__()
        self._index, self._url, self._size, self._at = index, url, size, 0
        self._blocks: dict[int, bytes] = {}

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        first, last = self._at // _BLOCK_BYTES, (end - 1) // _BLOCK_BYTES
        content = b"".join(self._block(number) for number in range(first, last + 1))
        start = self._at - first * _BLOCK_BYTES
        content = content[start : start + end - self._at]
        self._at = end
        return content

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * _BLOCK_BYTES
            end = min(start + _BLOCK_BYTES, self._size) - 1
            content = self._index.get(self._url, Range=f"bytes={start}-{end}")
            if len(content) != end - start + 1:
                raise _refused("the server of the wheels does not send parts of a file")
            self._blocks[number] = content
        return self._blocks[number]


@dataclass(frozen=True, slots=True)
class Wheel:
    """
    A wheel of torch for CPython on Linux.

    Attributes:
        python: "3.11".
        machine: "x86_64".
        glibc: Oldest glibc by the platform tag.
        size: In bytes.
    """

    version: str
    python: str
    machine: str
    glibc: str
    url: str
    size: int


def torch_releases(files: Sequence[Any], *, first: str) -> dict[str, list[Wheel]]:
    """
    Return the wheels of each torch minor from *first* on, oldest release first.

    Left out: yanked files, pre-releases, other systems than Linux, free-threaded Python.
    """
    releases: dict[str, list[Wheel]] = {}
    for file in files:
        wheel = _wheel(file)
        if wheel is None or numbers(wheel.version)[:2] < numbers(first):
            continue
        releases.setdefault(_minor(wheel.version), []).append(wheel)
    ordered = sorted(releases, key=numbers)
    result = {}
    for minor in ordered:
        wheels = sorted(releases[minor], key=lambda w: (numbers(w.version), numbers(w.python)))
        if any(
            wheel.machine == "x86_64" for wheel in wheels if wheel.version == wheels[-1].version
        ):
            result[minor] = wheels
    return result


def torch_row(minor: str, wheels: Sequence[Wheel], metadata: str) -> dict[str, Any]:
    """
    Return the row of *minor* in packages.json.

    Args:
        wheels: Of all its patch releases, oldest release first.
        metadata: METADATA of a wheel of the newest.

    Raises:
        CommandFailed: The metadata names no CUDA version.
    """
    version = wheels[-1].version
    own = [wheel for wheel in wheels if wheel.version == version]
    x86 = [wheel for wheel in own if wheel.machine == "x86_64"]
    pythons = sorted({wheel.python for wheel in x86}, key=numbers)
    requirements = _requirements(metadata)
    cuda = _cuda(requirements)
    if cuda is None:
        raise _refused(f"the metadata of torch {version} names no CUDA runtime")
    triton = [python for python in pythons if _asks_for("triton", requirements, python)]
    return {
        "minor": minor,
        "version": version,
        "patches": sorted({wheel.version for wheel in wheels}, key=numbers),
        "pythons": pythons,
        "triton": triton,
        "glibc": max((wheel.glibc for wheel in x86), key=numbers),
        "machines": sorted({wheel.machine for wheel in own}),
        "cuda": cuda,
        "build": "cu" + "".join(cuda.split(".")[:2]),
    }


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


# Source: PEP 513, 571 and 599.
_LEGACY = {"manylinux1": "2.5", "manylinux2010": "2.12", "manylinux2014": "2.17"}


def _wheel(file: Any) -> Wheel | None:
    name = file["filename"]
    if file.get("yanked") or not name.endswith(".whl"):
        return None
    try:
        _, version, _, tags = parse_wheel_filename(name)
    except InvalidWheelFilename:
        return None
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){2}", str(version)):  # no pre- or post-release
        return None
    for tag in tags:
        python = re.fullmatch(r"cp3([0-9]+)", tag.interpreter)
        # cp313t is the free-threaded build; cp37m is how CPython 3.7 names its only one.
        is_regular = tag.abi in (tag.interpreter, f"{tag.interpreter}m")
        platform = re.fullmatch(r"(manylinux[0-9]+|manylinux_[0-9]+_[0-9]+)_(.+)", tag.platform)
        if python and is_regular and platform:
            kind, machine = platform.groups()
            glibc = _LEGACY.get(kind) or kind.removeprefix("manylinux_").replace("_", ".")
            return Wheel(str(version), f"3.{python[1]}", machine, glibc, file["url"], file["size"])
    return None


def _requirements(metadata: str) -> list[Requirement]:
    found = []
    for text in HeaderParser().parsestr(metadata).get_all("Requires-Dist") or []:
        try:
            found.append(Requirement(text))
        except InvalidRequirement:
            continue
    return found


def _cuda(requirements: Sequence[Requirement]) -> str | None:
    """
    Return the CUDA version that a wheel asks for, such as "12.1.105" or "13.0.2".
    """
    for requirement in requirements:
        if re.fullmatch(r"nvidia-cuda-runtime-cu[0-9]+|cuda-toolkit", requirement.name):
            for spec in requirement.specifier:
                if spec.operator == "==" and re.fullmatch(r"[0-9]+(\.[0-9]+)+", spec.version):
                    return ".".join(spec.version.split(".")[:3])
    return None


def _asks_for(name: str, requirements: Sequence[Requirement], python: str) -> bool:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "sys_platform": "linux",
        "extra": "",
    }
    try:
        return any(
            requirement.name == name
            and (requirement.marker is None or requirement.marker.evaluate(environment))
            for requirement in requirements
        )
    except (UndefinedComparison, UndefinedEnvironmentName) as error:
        raise _refused(f"a marker of {name} in the metadata makes no sense: {error}") from None


def _refused(why: str) -> CommandFailed:
    return CommandFailed("the package index could not be used", why=why, fix=_FIX)
