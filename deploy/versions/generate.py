"""
Generates `compatibility.json`; a program of its own.

    python -m deploy.versions.generate            read the package index and write both files
    python -m deploy.versions.generate --offline  write it from sources/ as they are
    python -m deploy.versions.generate --check    write nothing; exit 1 where a file would change

`sources/packages.json` is what the package index said; the other files of `sources/` hold what it
does not say, by hand and with sources.  The index is that of this machine's pip configuration.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from deploy.errors import CommandFailed, DeployError, InventoryError
from deploy.versions.catalog import FILE, Catalog, numbers
from deploy.versions.package_index import Index, read_torch

FOLDER = Path(__file__).parent
COMMAND = "python -m deploy.versions.generate"
PACKAGES = "packages.json"
FIRST_MINOR = "1.13"

_Sources = Mapping[str, Mapping[str, Any]]


def main(argv: list[str]) -> int:
    """
    Write or compare the generated files; return the exit code.
    """
    parser = argparse.ArgumentParser(prog=COMMAND, description="Generates the version matrix.")
    parser.add_argument("--offline", action="store_true", help="do not read the package index")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    arguments = parser.parse_args(argv)
    try:
        wanted = {}
        if not arguments.offline:
            packages = read_torch(Index.of_pip(run_pip), first=FIRST_MINOR)
            wanted[f"sources/{PACKAGES}"] = packages_text(packages, today=_today())
        new = wanted.get(f"sources/{PACKAGES}")
        wanted[FILE] = catalog_text(read_sources(FOLDER, packages=new))
    except DeployError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    changed = [name for name, text in wanted.items() if _differs(FOLDER / name, text)]
    for name in changed:
        if not arguments.check:
            (FOLDER / name).write_text(wanted[name], encoding="utf-8")
        sys.stdout.write(f"{'differs' if arguments.check else 'wrote'}: {name}\n")
    if changed and arguments.check:
        sys.stderr.write(f"renew with: {COMMAND}\n")
    return 1 if changed and arguments.check else 0


def run_pip(*arguments: str) -> str:
    """
    Return what pip prints for *arguments*.

    Raises:
        CommandFailed: pip failed.
    """
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise CommandFailed(
            f"pip {' '.join(arguments)} failed",
            why=done.stderr.strip()[-400:] or f"it exited {done.returncode}",
            fix="run it by hand; pip has to work on this machine",
        )
    return done.stdout


def packages_text(packages: Mapping[str, Any], *, today: str) -> str:
    """
    Return the text of `sources/packages.json`, with its own digest.

    The date stays that of the last change of content, so that a second run changes nothing.
    """
    content = {"torch": packages["torch"]}
    try:
        known = json.loads((FOLDER / "sources" / PACKAGES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    date = known.get("date", today) if known.get("torch") == content["torch"] else today
    document = {"date": date, **content}
    return _json({"sha256": seal(document), **document})


def seal(document: Mapping[str, Any]) -> str:
    """
    Return the SHA-256 of *document* without its key `sha256`.
    """
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_sources(folder: Path, *, packages: str | None = None) -> _Sources:
    """
    Return the source files of *folder* by name, without their suffix.

    Args:
        packages: Text of packages.json; None: that of the folder.

    Raises:
        InventoryError: packages.json was changed by hand.
    """
    sources: dict[str, Any] = {}
    for name in ("torch", "nvidia", "distributions"):
        text = (folder / "sources" / f"{name}.yml").read_text(encoding="utf-8")
        sources[name] = yaml.safe_load(text)
    if packages is None:
        packages = (folder / "sources" / PACKAGES).read_text(encoding="utf-8")
    sources["packages"] = json.loads(packages)
    if sources["packages"].get("sha256") != seal(sources["packages"]):
        raise InventoryError(
            f"deploy/versions/sources/{PACKAGES} is not what the package index said",
            why="its content does not match its sha256: it was changed by hand",
            fix=COMMAND,
        )
    return sources


def catalog_text(sources: _Sources) -> str:
    """
    Return the text of `compatibility.json` for *sources*.

    Raises:
        InventoryError: The sources contradict each other, or lack a row.
    """
    document = _catalog(sources)
    Catalog.model_validate(document)
    return _json(document)


def _catalog(sources: _Sources) -> dict[str, Any]:
    packages, torch = sources["packages"], sources["torch"]
    nvidia, systems = sources["nvidia"], sources["distributions"]
    known = {row["minor"]: row for row in torch["minors"]}
    found = {row["minor"]: row for row in packages["torch"]}
    if known.keys() != found.keys():
        differing = sorted(known.keys() ^ found.keys(), key=numbers)
        raise InventoryError(
            f"torch {', '.join(differing)}: not in both {PACKAGES} and torch.yml",
            why="each minor of the package index needs its builds and Pythons in "
            "deploy/versions/sources/torch.yml, and no other",
            fix=f"add or remove its row in torch.yml, then {COMMAND}",
        )
    floors = {row["major"]: row["floor"] for row in nvidia["majors"]}
    document = {
        "renew": COMMAND,
        "date": packages["date"],
        "torch": [
            _torch(known[minor], found[minor], torch, packages["date"])
            for minor in sorted(known, key=numbers)
        ],
        "cuda": [
            {
                "cuda": row["cuda"],
                "native": row["native"],
                "floor": floors[numbers(row["cuda"])[0]],
                "compat_branches": row["compat"],
                "source": row["source"],
                "date": row["date"],
            }
            for row in nvidia["cuda"]
        ],
        "branches": [_renamed(row, ended="has_ended") for row in nvidia["branches"]],
        "generations": nvidia["generations"],
        "gpus": [
            _renamed(row, data_center="is_data_center", nvswitch="has_nvswitch_boards")
            | {"source": nvidia["gpus_source"], "date": nvidia["date"]}
            for row in nvidia["gpus"]
        ],
        "distributions": [
            _renamed(row, driver="driver_branch") for row in systems["distributions"]
        ],
        "pythons": systems["pythons"],
    }
    _check_references(document)
    return document


def _torch(
    own: Mapping[str, Any], package: Mapping[str, Any], torch: Mapping[str, Any], date: str
) -> dict[str, Any]:
    """
    Return the row of one minor: its package metadata joined with its row of torch.yml.
    """
    minor = own["minor"]
    pythons = package["pythons"]
    first, last = (numbers(own["python"][key]) for key in ("first", "last"))
    official = [python for python in pythons if first <= numbers(python) <= last]
    builds = [
        {
            "build": row["build"],
            "cuda": _cuda_of(row["build"]),
            "capabilities": row["capabilities"],
            "ptx": row["ptx"],
            "index": "pypi" if row["build"] == package["build"] else f"pytorch/{row['build']}",
            "is_seen": not row["how"].startswith("expected"),
        }
        for row in own["builds"]
    ]
    if package["build"] not in {row["build"] for row in own["builds"]}:
        raise InventoryError(
            f"torch {minor}: its default build {package['build']} is not in torch.yml",
            why=f"the wheel of {package['version']} asks for CUDA {package['cuda']}",
            fix=f"add the build to its row in deploy/versions/sources/torch.yml, then {COMMAND}",
        )
    cpu: dict[str, Any] = {"build": "cpu", "cuda": None, "capabilities": [], "ptx": None}
    keys = [torch["sources"].get(key, key) for key in own["sources"]]
    measured = [f"{row['build']}: {row['how']}" for row in own["builds"]]
    return {
        "minor": minor,
        "version": package["version"],
        "patches": package["patches"],
        "pythons": pythons,
        "official": official,
        "triton": package["triton"],
        "glibc": own["glibc"] or package["glibc"],
        "machines": package["machines"],
        "default": package["build"],
        "builds": [cpu | {"index": "pytorch/cpu", "is_seen": True}, *builds],
        "source": "; ".join([*keys, *measured, f"cpu: {torch['cpu_source']}"]),
        "date": date,
    }


def _cuda_of(build: str) -> str:
    # The last digit is the minor: cu118 is CUDA 11.8, cu130 is 13.0.
    return f"{build[2:-1]}.{build[-1]}"


def _renamed(row: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in row.items()}


def _check_references(document: Mapping[str, Any]) -> None:
    """
    Check that each CUDA of a build has its drivers, and each GPU its generation.

    Raises:
        InventoryError: A row is missing.
    """
    drivers = {row["cuda"]: row["native"] for row in document["cuda"]}
    builds = [build for row in document["torch"] for build in row["builds"]]
    missing = {f"CUDA {b['cuda']}" for b in builds if b["cuda"] and not drivers.get(b["cuda"])}
    generations = {row["generation"] for row in document["generations"]}
    missing |= {g["generation"] for g in document["gpus"] if g["generation"] not in generations}
    if missing:
        raise InventoryError(
            f"deploy/versions/sources/nvidia.yml has no row for {', '.join(sorted(missing))}",
            why="a torch build or a GPU needs its driver versions",
            fix=f"add it, with its source, then {COMMAND}",
        )


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _differs(path: Path, text: str) -> bool:
    return not path.exists() or path.read_text(encoding="utf-8") != text


def _today(clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> str:
    return clock().date().isoformat()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
