"""
Reads what a host says about itself: distribution, driver, GPUs.  One command and a pure parser.

Only files are read: nvidia-smi may hang on a broken driver, and needs one to be there.
"""

import re
from collections.abc import Sequence

from deploy.versions.catalog import Catalog, Modules
from deploy.versions.question import find_gpu
from deploy.versions.resolution import Gpu, HostFacts

COMMAND = (
    "sh",
    "-c",
    "cat /etc/os-release; echo ==driver; cat /sys/module/nvidia/version; "
    "echo ==modules; cat /proc/driver/nvidia/version; "
    "echo ==gpus; cat /proc/driver/nvidia/gpus/*/information; "
    "echo ==nvswitch; ls /proc/driver/nvidia-nvswitch/devices; :",
)
OUTPUT_MAX = 1 << 16  # bytes


def parse_host(catalog: Catalog, output: str) -> HostFacts:
    """
    Return the facts in the *output* of COMMAND; what it lacks, or has no meaning, is not known.
    """
    system, _, rest = output.partition("==driver\n")
    driver, _, rest = rest.partition("==modules\n")
    modules, _, rest = rest.partition("==gpus\n")
    gpus, _, switches = rest.partition("==nvswitch\n")
    keys = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', system, re.MULTILINE))
    name = keys.get("ID", "") + keys.get("VERSION_ID", "").replace(".", "")
    version = re.fullmatch(r"[0-9]{3}\.[0-9]{1,3}(\.[0-9]{1,3})?", driver.strip())
    distribution = next((row for row in catalog.distributions if row.name == name), None)
    models = re.findall(r"^Model:\s*(.+)$", gpus, re.MULTILINE)
    unknown = {"gpu": ", ".join(dict.fromkeys(m for m in models if not find_gpu(catalog, m)))}
    if distribution is None:
        unknown["os"] = name
    return HostFacts(
        driver=version[0] if version else None,
        gpus=_gpus(catalog, models),
        distribution=distribution,
        modules=_modules(modules),
        has_nvswitch=bool(switches.strip()),
        unknown={flag: text for flag, text in unknown.items() if text},
    )


def _gpus(catalog: Catalog, models: Sequence[str]) -> tuple[Gpu, ...]:
    found = {}
    for model in models:
        gpu = find_gpu(catalog, model)
        if gpu is not None:
            found[gpu.name] = gpu
    return tuple(found.values())


def _modules(text: str) -> Modules | None:
    if "NVRM version:" not in text:
        return None
    return "open" if "Open Kernel Module" in text else "proprietary"
