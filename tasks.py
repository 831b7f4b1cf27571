"""
The command line: parse, call `deploy`, print, exit code.  `inv --list` is its table of contents.

Results go to stdout, progress to stderr.  Every error prints what failed, why and what to do, and
exits with the code of its class in `deploy/errors.py` (listed in docs/reference/cli.md).
"""

import atexit
import functools
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invoke import Collection, task
from rich.console import Console

# Imports make many objects and hardly any garbage; at the end the memory goes with the process.
gc.set_threshold(100_000)
atexit.register(gc.freeze)

ROOT = Path(__file__).parent
OUT = Console(soft_wrap=True)
ERR = Console(stderr=True, soft_wrap=True, highlight=False)


def progress(line: str) -> None:
    ERR.print(line, markup=False)


def show(document: dict[str, Any], text: Any, as_json: bool) -> None:
    """
    Print a result: one JSON document, or *text*.
    """
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")
    else:
        OUT.print(text, markup=False)


def fails_clearly(body: Callable[..., Any]) -> Callable[..., Any]:
    """
    Turn a DeployError into its message (with `--json`: its document) and its exit code.
    """

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        from deploy.errors import DeployError

        try:
            return body(*args, **kwargs)
        except DeployError as error:
            if kwargs.get("json"):
                show({"error": error.as_json()}, "", as_json=True)
            else:
                ERR.print(f"\n{error}", markup=False, style="red")
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            progress("interrupted")
            sys.exit(130)

    return run


def confirm(question: str, yes: bool) -> None:
    """
    Ask on a terminal; elsewhere insist on --yes.
    """
    from deploy.errors import UsageError

    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "this changes hosts, and nobody is there to ask",
            why="neither --yes was given nor is this a terminal",
            fix="add --yes",
        )
    ERR.print(f"{question} [y/N] ", end="")
    if input().strip().lower() not in {"y", "yes"}:
        raise UsageError("not confirmed", why="the answer was not yes", fix="nothing was changed")


def whole(flag: str, text: object) -> int:
    from deploy.errors import UsageError

    try:
        return int(str(text))
    except ValueError:
        raise UsageError(
            f"--{flag} {text}: not a whole number",
            why=f"got {str(text)!r}",
            fix=f"give a number, such as --{flag} 10",
        ) from None


def path_from_caller(text: str) -> Path:
    """
    Return *text* as the directory that the user called `./inv` from sees it.
    """
    return Path(os.environ.get("SLIPWAY_CWD", str(Path.cwd()))) / Path(text).expanduser()


_HOSTS = "Fleet to work on: NAME of inventories/NAME.yml (default: `fleet` in invoke.yaml)."
_LIMIT = "Only these hosts: names, globs or @groups, comma-separated (default: all)."
_JSON = "Print one JSON document on stdout; progress stays on stderr."
_YES = "Do not ask; for CI."


@task(help={"hosts": _HOSTS, "check": "Show what would change, and change nothing.",
            "limit": _LIMIT, "json": _JSON, "yes": _YES}, auto_shortflags=False)  # fmt: skip
@fails_clearly
def provision(c, hosts=None, check=False, limit=None, json=False, yes=False):
    """
    Bring hosts to the pinned state.

    Changes packages, users, directories, HAProxy, the venv and the units of the fleet's hosts.
    Never changes which release serves: that is `inv release`.  A second run changes nothing.

        inv provision --hosts lab --check
    """
    from deploy import report, wiring
    from deploy.provision import provision as run

    fleet = wiring.fleet(hosts or c.fleet, limit)
    if not check:
        names = ", ".join(host.name for host in fleet.hosts)
        confirm(f"provision {names}?", yes)
    found = run(fleet, check=check, progress=lambda e: progress(str(e)), env=dict(os.environ))
    error = wiring.provision_error(found)
    document = found.as_json() | ({"error": error.as_json()} if error else {})
    show(document, report.provision_text(found), json)
    leave(error, json)


@task(help={"hosts": _HOSTS, "limit": _LIMIT, "json": _JSON,
            "junit": "JUnit XML file to write (default reports/verify.xml)."},
      auto_shortflags=False)  # fmt: skip
@fails_clearly
def verify(c, hosts=None, limit=None, junit="", json=False):
    """
    Assert over SSH that hosts are as provisioned.

    Runs tests/testinfra on every host.  Reads only; changes nothing.

        inv verify --hosts lab
    """
    from deploy import report, wiring
    from deploy.verify import verify as run

    fleet = wiring.fleet(hosts or c.fleet, limit)
    target = path_from_caller(junit) if junit else ROOT / "reports" / "verify.xml"
    found = run(fleet, junit=target, progress=progress)
    error = {"error": found.error.as_json()} if found.error else {}
    show(found.as_json() | error, report.verify_text(found), json)
    leave(found.error, json)


@task(help={"model": "Directory with config.json, tokenizer.json and safetensors.",
            "version": "Name of the release, such as v1.3.0.", "hosts": _HOSTS, "json": _JSON},
      auto_shortflags=False)  # fmt: skip
@fails_clearly
def bundle(c, model, version, hosts=None, json=False):
    """
    Build and sign a bundle.

    Writes into .slipway/; touches no host.  The same inputs give the same bytes.

        inv bundle --model .slipway/models/good-v1 --version v1.0.0
    """
    from deploy import wiring

    made = wiring.make_bundle(
        wiring.fleet(hosts or c.fleet), path_from_caller(model), version, progress
    )
    show(
        {"bundle": made.digest, "version": version, "path": str(made.directory)},
        f"{version}  {made.digest}",
        json,
    )


@task(help={"canary": "Share of traffic that the new release gets first, in percent, 1 to 50.",
            "version": "Bundle to release: version or digest (default: the newest).",
            "hosts": _HOSTS, "limit": _LIMIT, "json": _JSON}, auto_shortflags=False)  # fmt: skip
@fails_clearly
def plan(c, canary="", version=None, hosts=None, limit=None, json=False):
    """
    Show what a release would do, host by host.

    Reads hosts; changes nothing.  `inv release --plan DIGEST` does exactly this plan or refuses.

        inv plan --canary 10
    """
    from deploy import report, wiring
    from deploy.release.plan import check_share

    fleet = wiring.fleet(hosts or c.fleet, limit)
    pct = check_share(whole("canary", canary)) if canary else fleet.release.canary.share_pct
    found = wiring.checked_bundle(fleet, version)
    with wiring.hosts(fleet) as on:
        made = wiring.make_plan(on, found, pct)
    show(report.plan_json(made), report.plan_text(made), json)


@task(help={"canary": "Share of traffic that the new release gets first, in percent, 1 to 50 "
                      "(default: release.canary.share_pct of the fleet).",
            "version": "Bundle to release: version or digest (default: the newest).",
            "plan": "Digest that `inv plan` printed; any other plan is refused.",
            "hosts": _HOSTS, "limit": _LIMIT, "json": _JSON, "yes": _YES},
      auto_shortflags=False)  # fmt: skip
@fails_clearly
def release(c, canary="", version=None, plan=None, hosts=None, limit=None, json=False, yes=False):
    """
    Release a bundle, wave by wave, or go back.

    Changes the slots of the fleet's hosts and the shares of their traffic.  Never changes drivers,
    kernel or packages: that is `inv provision`.  Exits 8 when the canary is refused: the old
    release then serves everywhere.

        inv release --canary 10
    """
    from deploy import report, wiring
    from deploy.release.plan import check_share

    fleet = wiring.fleet(hosts or c.fleet, limit)
    pct = check_share(whole("canary", canary)) if canary else fleet.release.canary.share_pct
    found = wiring.checked_bundle(fleet, version)
    with wiring.hosts(fleet) as on:
        made = wiring.make_plan(on, found, pct)
        wiring.check_digest(made, plan)
        progress(report.plan_text(made))
        if not made.is_noop:
            confirm("go?", yes)
        outcome = wiring.run_release(on, found, made, lambda e: progress(report.event_line(e)))
    finish(outcome, json)


@task(help={"to": "Release id or version to go back to (default: the one before).",
            "hosts": _HOSTS, "limit": _LIMIT, "json": _JSON, "yes": _YES},
      auto_shortflags=False)  # fmt: skip
@fails_clearly
def rollback(c, to=None, hosts=None, limit=None, json=False, yes=False):
    """
    Go back to the last release recorded as good.

    No build, no download, no canary.  Where a release stopped in the middle, drops it; where all
    is settled, goes to the release before.

        inv rollback
    """
    from deploy import report, wiring

    fleet = wiring.fleet(hosts or c.fleet, limit)
    with wiring.hosts(fleet) as on:
        made = wiring.make_rollback(on, to)
        progress(f"{made.reason}: {', '.join(h.host for h in made.hosts) or 'nothing to do'}")
        if not made.is_noop:
            confirm("go?", yes)
        outcome = wiring.run_rollback(on, made, lambda e: progress(report.event_line(e)), to)
    finish(outcome, json)


def finish(outcome: Any, as_json: bool) -> None:
    """
    Print how a release ended and leave with its exit code.
    """
    show(outcome.as_json(), f"{outcome.release}: {outcome.ending}: {outcome.reason}", as_json)
    leave(outcome.error, as_json)


def leave(error: Any, as_json: bool) -> None:
    """
    Exit with the code of *error*, if there is one; a JSON document has told it already.
    """
    if error is None:
        return
    if not as_json:
        ERR.print(f"\n{error}", markup=False, style="red")
    sys.exit(error.exit_code)


@task(help={"hosts": _HOSTS, "limit": _LIMIT, "json": _JSON,
            "watch": "Show again every second until interrupted."},
      auto_shortflags=False)  # fmt: skip
@fails_clearly
def status(c, hosts=None, limit=None, json=False, watch=False):
    """
    Show hosts, slots, versions, shares, health and the release in progress.

    Reads hosts; changes nothing.

        inv status --json
    """
    import time

    from rich.live import Live

    from deploy import report, wiring

    fleet = wiring.fleet(hosts or c.fleet, limit)
    with wiring.hosts(fleet) as on:
        if not watch:
            seen = on.seen()
            show(report.status_json(fleet.name, seen), report.status_table(fleet.name, seen), json)
            return
        with Live(report.status_table(fleet.name, on.seen()), console=OUT) as live:
            while True:
                time.sleep(1)
                live.update(report.status_table(fleet.name, on.seen()))


@task(help={"keep": "Leave the lab up afterwards.", "json": _JSON,
            "fresh": "Begin with empty disks (default); --no-fresh keeps hosts that run."},
      auto_shortflags=False)  # fmt: skip
@fails_clearly
def demo(c, keep=False, fresh=True, json=False):
    """
    Do the main job on four real hosts under live traffic.

    Lab up, provision, release v1, release v2 with a canary, refuse two bad releases, roll back,
    verify.  Needs root on a Debian-like machine; brings the lab down at the end.

        inv demo
    """
    from deploy.demo.demo import run_demo

    report = run_demo(keep=keep, fresh=fresh, progress=progress)
    show(report.as_json(), report.text(), json)
    sys.exit(0 if report.is_good else 1)


@task(help={"unit": "Only what needs no hosts: seconds instead of minutes.",
            "args": "More arguments for pytest."}, auto_shortflags=False)  # fmt: skip
def test(c, unit=False, args=""):
    """
    Test everything that can be tested on this machine.

    Lint, types, unit tests, then the lab tests on real hosts (root, minutes).

        inv test --unit
    """
    import subprocess

    bin_ = ROOT / ".venv" / "bin"
    for argv in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        progress(f"$ {' '.join(argv)}")
        done = subprocess.run([bin_ / argv[0], *argv[1:]], cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(done.returncode)
    where = ["tests/unit"] if unit else ["tests/unit", "tests/lab"]
    argv = [bin_ / "python", "-m", "pytest", *where, *args.split()]
    progress(f"$ pytest {' '.join([*where, *args.split()])}")
    sys.exit(subprocess.run(argv, cwd=ROOT, check=False).returncode)


@task(help={"json": _JSON}, auto_shortflags=False)
@fails_clearly
def matrix(c, json=False):
    """
    Show the version matrix.

        inv matrix
    """
    from deploy import report
    from deploy.versions.matrix import load_matrix

    found = load_matrix()
    show(report.matrix_json(found), report.matrix_table(found), json)


@task(help={"hosts": "How many hosts (default 4).", "fresh": "Empty their disks first.",
            "json": _JSON}, auto_shortflags=False)  # fmt: skip
@fails_clearly
def lab_up(c, hosts="4", fresh=False, json=False):
    """
    Boot lab hosts and wait until they answer over SSH.

    The first time builds the base tree, cached under ~/.cache/slipway.

        inv lab.up --hosts 4
    """
    from deploy import report
    from deploy.lab import lab

    found = lab.up(whole("hosts", hosts), progress=progress, fresh=fresh)
    show(report.lab_json(found), report.lab_table(found), json)


@task(auto_shortflags=False)
@fails_clearly
def lab_down(c):
    """
    Stop the lab; leave no process, mount, link or nft table.
    """
    from deploy.lab import lab

    lab.down(progress=progress)


@task(help={"json": _JSON}, auto_shortflags=False)
@fails_clearly
def lab_status(c, json=False):
    """
    Show the lab's hosts.
    """
    from deploy import report
    from deploy.lab import lab

    found = lab.status()
    show(report.lab_json(found), report.lab_table(found), json)


@task(positional=["host"], help={"host": "Name of the host, such as n1."}, auto_shortflags=False)
@fails_clearly
def lab_ssh(c, host):
    """
    Open a shell on a lab host.
    """
    from deploy.lab import lab

    argv = lab.ssh_argv(host)
    os.execvp(argv[0], argv)  # noqa: S606 - our own argv


@task(help={"kind": "good-v1, good-v2, nan or garbled.", "out": "Directory to write."},
      auto_shortflags=False)  # fmt: skip
@fails_clearly
def lab_model(c, kind="good-v1", out=""):
    """
    Make a tiny GLM model for the lab: two good ones, two bad ones.

        inv lab.model --kind good-v1
    """
    from deploy import wiring

    made = wiring.make_lab_model(kind, path_from_caller(out) if out else None, progress)
    OUT.print(str(made), markup=False)


def _lab_fault(name: str, does: str) -> Any:
    @task(name=name, positional=["host"], help={"host": "Name of the host, such as n1."},
          auto_shortflags=False)  # fmt: skip
    @fails_clearly
    def fault(c, host):
        from deploy.lab import lab

        told = {"progress": progress} if name in {"crash", "start"} else {}
        getattr(lab, name)(host, **told)
        progress(f"{host}: {name}")

    fault.__doc__ = does
    fault.body.__doc__ = does
    return fault


@task(help={"device": "cuda or cpu (default: cuda where there is one).",
            "shape": "glm-4-9b or tiny (default: by device); weights are random.",
            "lines": "Lines of work, comma-separated, such as batch-1,mix-256 (default: all).",
            "runs": "Runs of each line, after its warm-up (default 3); the median counts.",
            "runs-mix": "Runs of the lines with mixed lengths (default: as --runs).",
            "peer": "Engines to run beside ours where installed: vllm,transformers.",
            "json": _JSON}, auto_shortflags=False)  # fmt: skip
@fails_clearly
def bench_engine(c, device="", shape="", lines="", runs="", runs_mix="", peer="", json=False):
    """
    Time the engine on this machine, beside what it allows.

    Runs `python -m runtime.bench`, which needs only torch and Triton.  Touches no host.  Exits 1
    when a line of work failed; the others are reported all the same.

        inv bench.engine --device cpu
    """
    import subprocess

    from deploy.errors import UsageError

    given = {"device": device, "shape": shape, "lines": lines, "runs": runs,
             "runs-mix": runs_mix, "peer": peer}  # fmt: skip
    argv = [sys.executable, "-m", "runtime.bench"]
    argv += [f"--{flag}={value}" for flag, value in given.items() if value]
    argv += ["--json"] if json else []
    code = subprocess.run(argv, cwd=ROOT, check=False).returncode
    if code == 2:  # of argparse, which has told which one
        raise UsageError(
            "bench.engine: a flag was refused",
            why="runtime.bench said so on standard error",
            fix="inv --help bench.engine",
        )
    sys.exit(code)


_lab = Collection("lab")
_lab.add_task(lab_up, name="up")
_lab.add_task(lab_down, name="down")
_lab.add_task(lab_status, name="status")
_lab.add_task(lab_ssh, name="ssh")
_lab.add_task(lab_model, name="model")
for _name, _does in {
    "cut": "Take a lab host's link down.",
    "heal": "Bring a lab host's link up again.",
    "crash": "Kill a lab host as a power loss would.",
    "start": "Boot a crashed lab host with its disk kept.",
    "freeze": "Freeze every process of a lab host.",
    "thaw": "Thaw a frozen lab host.",
}.items():
    _lab.add_task(_lab_fault(_name, _does), name=_name)

_bench = Collection("bench")
_bench.add_task(bench_engine, name="engine")

ns = Collection(
    demo, test, matrix, provision, verify, bundle, plan, release, rollback, status, _lab, _bench
)
