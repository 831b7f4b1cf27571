"""
`python -m runtime.bench`: parse, measure, print.  Exit 1: a line failed; 2: a flag was refused.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TextIO

from runtime.bench.peers import PEERS
from runtime.bench.report import OURS, BenchReport
from runtime.bench.session import Progress, SessionPlan, run_session
from runtime.bench.shapes import SHAPES, ModelShape
from runtime.bench.system import OpenTimedSystem, TimedSystem
from runtime.bench.work import LINES

STARTED_S = time.monotonic()


def _lines_that_run() -> tuple[str, ...]:
    """
    Return all lines; without llguidance and tokenizers, those that have no grammar.
    """
    try:
        import llguidance  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError:
        return tuple(name for name, line in LINES.items() if "grammar" not in line.half)
    return tuple(LINES)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runtime.bench")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="default: cuda if torch sees a GPU"
    )
    parser.add_argument(
        "--shape", choices=tuple(SHAPES), help="default: glm-4-9b on a GPU, tiny on a CPU"
    )
    parser.add_argument(
        "--lines", type=_names(LINES), default=_lines_that_run(), help=f"from {', '.join(LINES)}"
    )
    parser.add_argument("--runs", type=_count, default=3, help="runs of each line (default 3)")
    parser.add_argument("--runs-mix", type=_count, help="runs of each mix (default: --runs)")
    parser.add_argument("--peer", type=_names(PEERS), default=(), help=f"from {', '.join(PEERS)}")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of prompts and lengths (default 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one document instead of a table")
    return parser


def main(argv: Sequence[str], open_out: Callable[[], TextIO], progress: Progress) -> int:
    """
    Parse the flags, run the benchmark and print the report; return the exit code.

    Args:
        open_out: Returns the report's output; called after the flags are checked.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    # Imported late: --help must not wait for torch.
    import torch

    from runtime.bench.ceilings import measure_ceilings
    from runtime.bench.engine import PRECISION_OF, OurEngine
    from runtime.bench.machine import read_machine
    from runtime.models.loader import PRECISIONS, prepare_torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    shape = SHAPES[args.shape or ("glm-4-9b" if device == "cuda" else "tiny")]
    lines = tuple(LINES[name].shrunk(shape.shrink) for name in args.lines)
    plan = SessionPlan(shape, device, lines, args.runs, args.runs_mix or args.runs, args.seed)
    out = open_out()
    prepare_torch(1)
    progress("measuring the device")
    precision = PRECISION_OF[device]
    ceilings = measure_ceilings(device, PRECISIONS[precision])
    report = BenchReport(out, as_json=args.json)
    report.begin(
        read_machine(device), ceilings, shape.name, device,
        precision=precision, runs=plan.runs, runs_mix=plan.runs_mix, seed=plan.seed,
    )  # fmt: skip

    def open_ours(shape: ModelShape, device: str) -> TimedSystem:
        return OurEngine(shape, device, ceilings)

    systems: Mapping[str, OpenTimedSystem] = {
        OURS: open_ours,
        **{name: PEERS[name] for name in args.peer},
    }
    run_session(plan, systems, report, progress)
    report.end()
    return 1 if report.failed else 0


def _names(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def reserve_stdout() -> TextIO:
    """
    Return standard output, reserved for results.

    Everything else that is written to it later, by libraries and their child processes, goes to
    standard error.
    """
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return results


def print_progress(line: str) -> None:
    sys.stderr.write(f"bench: {time.monotonic() - STARTED_S:6.1f} s  {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:], reserve_stdout, print_progress))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
