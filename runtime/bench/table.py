"""
The text of the printed report.  Pure.
"""

from collections.abc import Mapping

from runtime.bench.machine import BenchMachine
from runtime.bench.recorded import RecordedRun
from runtime.bench.sample import Ceilings, Spread
from runtime.bench.work import Line

Values = Mapping[str, Spread | None]

_START = f"{'line':<14}{'requests x prompt + new':<28}{'tokens/s':>9} {'(least-most)':<19}"
OUR_TITLES = (
    f"{_START}{'ms/step':>8}{'first ms':>10}{'last first':>11}{'host ms':>9}"
    f"{'of copy':>9}{'of read':>9}{'of roof':>9}"
)
PEER_TITLES = f"{_START}{'ours/peer':>10}"


def header(
    machine: BenchMachine, ceilings: Ceilings, shape: str, settings: Mapping[str, object]
) -> str:
    """
    Return the report's first lines: machine, versions, settings and ceilings.
    """
    driver = f", driver {machine.driver}" if machine.driver else ""
    cuda = f" (CUDA {machine.cuda})" if machine.cuda else ""
    settings_text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
    return (
        f"{machine.at}  {machine.device}{driver}\n"
        f"torch {machine.torch}{cuda}, triton {machine.triton or 'none'}, "
        f"Python {machine.python}\n"
        f"shape {shape}, {settings_text}\n"
        f"ceilings: copy {ceilings.copy_gb_s:.0f} GB/s, read {ceilings.read_gb_s:.0f} GB/s, "
        f"product {_short(ceilings.matmul_tflop_s)} TFLOP/s\n"
        "of copy, of read: bytes of a steady decode step over its time, as a share of the ceiling; "
        "of roof: least time of all steps over their time"
    )


def recorded(record: RecordedRun) -> str:
    """
    Return the source of *record* and its card's ceilings: cards of one model differ by a few %.
    """
    return (
        f"recorded: {record.system} {record.version}, {record.read_on}, on a card with copy "
        f"{record.copy_gb_s:.0f} GB/s, product {_short(record.matmul_tflop_s)} TFLOP/s"
    )


def our_row(line: Line, values: Values, recorded: float | None, ratio: float | None) -> str:
    row = (
        f"{_start(line, values)}{_number(values['step_ms'], 2):>8}"
        f"{_number(values['first_ms'], 1):>10}{_number(values['last_first_ms'], 1):>11}"
        f"{_number(values['host_ms'], 2):>9}{_share(values['of_copy']):>9}"
        f"{_share(values['of_read']):>9}{_share(values['of_roofline']):>9}"
    )
    if recorded is not None and ratio is not None:
        row += f"  recorded {_short(recorded)}: {ratio:.2f}x"
    wall, layers = values["wall_s"], values["prefill_tflop_s"]
    counted = values["counted_tflop_s"]
    if wall and layers and counted:
        row += (
            f"\n{'':<14}{wall.median:.3f} s; {_short(layers.median)} TFLOP/s of the layers' "
            f"matrices, {_short(counted.median)} counted over all parameters"
        )
    return row


def peer_row(line: Line, values: Values, ratio: float | None, note: str) -> str:
    ratio_text = f"{ratio:.2f}x" if ratio is not None else "-"
    return f"{_start(line, values)}{ratio_text:>10}{f'  {note}' if note else ''}"


def failure(line: Line, error: str) -> str:
    return f"{line.name:<14}FAILED: {error}"


def _start(line: Line, values: Values) -> str:
    rate = values["tokens_per_s"]
    assert rate is not None, "every sample has a rate"
    least_most = f"({_short(rate.least)}-{_short(rate.most)})"
    return f"{line.name:<14}{line.workload:<28}{_short(rate.median):>9} {least_most:<19}"


def _short(value: float) -> str:
    """
    Return *value* with about four significant digits.
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _number(spread: Spread | None, digits: int) -> str:
    return f"{spread.median:.{digits}f}" if spread else "-"


def _share(spread: Spread | None) -> str:
    return f"{spread.median:.0%}" if spread else "-"
