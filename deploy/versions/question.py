"""
Reads a question to the version matrix from the words of an operator.  Pure.
"""

import difflib
import re

from deploy.errors import UsageError
from deploy.foreign_text import visible
from deploy.versions.catalog import Catalog, Distribution, numbers
from deploy.versions.resolution import Gpu, HostFacts, Wish

_LIMIT = 80  # characters of a refused value
# What vendors write around the name of a model: "NVIDIA H100 80GB HBM3", "a100-sxm4-40gb".
_MAKER = re.compile(r"^(?:nvidia|tesla|geforce|quadro)+")
_VARIANT = re.compile(
    r"(?:sxm[0-9]?|pcie|nvl|hbm[0-9][a-z]?|[0-9]+gb|ti|super|blackwell|server|maxq|workstation|edition"
    r"|laptopgpu)*"
)


def parse_wish(catalog: Catalog, *, torch: str, cuda: str, python: str) -> Wish:
    """
    Return the wish of these flags; an empty one leaves it open.

    Raises:
        UsageError: A value is none that the matrix knows; the error names flag and remedy.
    """
    minor, build = _torch(catalog, torch) if torch else (None, None)
    wanted = _cuda(catalog, cuda) if cuda else None
    if build and wanted and build != wanted:
        raise _refused(
            "cuda", cuda, f"--torch {torch} asks for another build", "give one of the two"
        )
    return Wish(minor, wanted or build, _python(catalog, python) if python else None)


def parse_facts(catalog: Catalog, *, driver: str, gpu: str, os: str) -> HostFacts:
    """
    Return the host of these flags; an empty one is not known.

    Args:
        gpu: Models or compute capabilities, separated by commas.

    Raises:
        UsageError: A value is none that the matrix knows; the error names flag and remedy.
    """
    return HostFacts(
        driver=parse_driver(catalog, driver) if driver else None,
        gpus=tuple(_gpu(catalog, name) for name in gpu.split(",")) if gpu else (),
        distribution=parse_distribution(catalog, os) if os else None,
    )


def parse_driver(catalog: Catalog, text: str) -> str:
    """
    Return the full driver version of *text*; of a branch alone, its newest known release.

    Raises:
        UsageError: It is no driver version, or a branch of which no release is known.
    """
    if re.fullmatch(r"[0-9]{3}\.[0-9]{1,3}(\.[0-9]{1,3})?", text):
        return text
    example = "--driver 580.95.05; on the host, nvidia-smi and /sys/module/nvidia/version say it"
    branch = re.fullmatch(r"[Rr]?([0-9]{3})", text)
    if not branch:
        raise _refused(
            "driver", text, "it should be a version such as 580.95.05, or a branch", example
        )
    known = catalog.branch_of(branch[1])
    if known is None or known.newest is None:
        having = ", ".join(str(row.branch) for row in catalog.branches if row.newest)
        raise _refused(
            "driver", text, f"of a branch alone only {having} have a known release", example
        )
    return known.newest


def parse_distribution(catalog: Catalog, text: str) -> Distribution:
    """
    Return the distribution that *text* names, such as "debian12", "Ubuntu 24.04" or "noble".

    Raises:
        UsageError: The matrix does not have it.
    """
    name = re.sub(r"[^a-z0-9]", "", text.lower())
    for row in catalog.distributions:
        if name in (row.name, row.codename):
            return row
    names = [row.name for row in catalog.distributions]
    raise _refused(
        "os", text, f"the matrix has {', '.join(names)}", f"--os {_near(name, names, names[0])}"
    )


def _torch(catalog: Catalog, text: str) -> tuple[str, str | None]:
    """
    Return the minor that *text* names, and the CUDA version of its build if it names one.
    """
    match = re.fullmatch(r"([0-9]{1,3}\.[0-9]{1,3})(\.[0-9]{1,3})?(?:\+(.+))?", text)
    minors = [row.minor for row in catalog.torch]
    known = f"the matrix has torch {minors[0]} to {minors[-1]}"
    if not match:
        raise _refused("torch", text, "it should be a version such as 2.3", f"--torch {minors[-1]}")
    minor, patch, build = match.groups()
    if minor not in minors:
        raise _refused("torch", text, known, f"--torch {_closest(minor, minors)}")
    release = next(row for row in catalog.torch if row.minor == minor)
    if patch and minor + patch != release.version:
        is_older = minor + patch in release.patches
        why = "it is an older patch release" if is_older else "there is no such release"
        raise _refused(
            "torch", text, f"{why}; {minor} stands for {release.version}", f"--torch {minor}"
        )
    return minor, _cuda(catalog, build, flag="torch", whole=text) if build else None


def _cuda(catalog: Catalog, text: str, *, flag: str = "cuda", whole: str = "") -> str:
    if text.lower() == "cpu":
        return "cpu"
    match = re.fullmatch(
        r"([0-9]{1,3}\.[0-9]{1,3})(?:\.[0-9]{1,3})*|cu([0-9]{2})([0-9])", text.lower()
    )
    known = [row.cuda for row in catalog.cuda]
    if not match:
        why = "CUDA should be a version such as 12.8, a build such as cu128, or cpu"
        raise _refused(flag, whole or text, why, "--cuda 12.8")
    cuda = match[1] or f"{match[2]}.{match[3]}"
    if cuda not in known:
        why = f"the matrix has CUDA {', '.join(known)}"
        raise _refused(flag, whole or text, why, f"--cuda {_closest(cuda, known)}")
    return cuda


def _python(catalog: Catalog, text: str) -> str:
    match = re.fullmatch(r"(?:python)?(3\.[0-9]{1,2})(?:\.[0-9]{1,2})?", text.lower())
    known = [row.python for row in catalog.pythons]
    if not match:
        raise _refused("python", text, "it should be a version such as 3.12", "--python 3.12")
    if match[1] not in known:
        why = f"the matrix has Python {known[0]} to {known[-1]}"
        raise _refused("python", text, why, f"--python {_closest(match[1], known)}")
    return match[1]


def find_gpu(catalog: Catalog, text: str) -> Gpu | None:
    """
    Return the GPU that *text* names, a model or a compute capability; None: not in the catalog.
    """
    capability = re.fullmatch(r"(?:sm_?)?([0-9]{1,2})\.?([0-9])", text.strip().lower())
    if capability:
        number = f"{capability[1]}.{capability[2]}"
        models = tuple(row for row in catalog.gpus if row.capability == number)
        if models:
            return Gpu(number, number, models)
    name = _plain(text)
    for row in sorted(catalog.gpus, key=lambda row: -len(row.gpu)):
        own = _plain(row.gpu)
        if name.startswith(own) and _VARIANT.fullmatch(name.removeprefix(own)):
            return Gpu(row.gpu, row.capability, (row,))
    return None


def _gpu(catalog: Catalog, text: str) -> Gpu:
    gpu = find_gpu(catalog, text)
    if gpu is None:
        names = [row.gpu for row in catalog.gpus]
        capabilities = sorted({row.capability for row in catalog.gpus}, key=numbers)
        near = _same_model(text, names)
        raise _refused(
            "gpu",
            text,
            f"the matrix has {', '.join(names)}, and the compute capabilities "
            f"{', '.join(capabilities)}",
            (f"--gpu {near}, or " if near else "--gpu with ")
            + "its compute capability: nvidia-smi --query-gpu=compute_cap --format=csv",
        )
    return gpu


def _same_model(text: str, names: list[str]) -> str | None:
    """
    Return the GPU of *names* whose name is in *text*, or has *text* in it.

    One that is only spelt alike (A30 for "3.5", V100 for "T1000") may be of another generation.
    """
    name = _plain(text)
    for known in sorted(names, key=len, reverse=True):
        own = _plain(known)
        is_in = re.search(rf"{own}(?![0-9])", name) or re.search(
            rf"(?<![0-9]){re.escape(name)}(?![0-9])", own
        )
        if len(name) > 2 and is_in:
            return known.lower()
    return None


def _plain(name: str) -> str:
    return _MAKER.sub("", re.sub(r"[^a-z0-9]", "", name.lower()))


def _closest(version: str, known: list[str]) -> str:
    """
    Return the newest of *known*, oldest first, that is not newer than *version*; or the oldest.
    """
    older = [other for other in known if numbers(other) <= numbers(version)]
    return (older or known[:1])[-1]


def _near(text: str, known: list[str], default: str) -> str:
    return (difflib.get_close_matches(text, known, n=1, cutoff=0.4) or [default])[0]


def _refused(flag: str, text: str, why: str, fix: str) -> UsageError:
    return UsageError(f"--{flag} {visible(text, limit=_LIMIT)}: not valid", why=why, fix=fix)
