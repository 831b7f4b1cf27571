"""
Compares the assertions that were made with those that the fleet file implies.  Pure.
"""

from collections.abc import Iterable, Mapping, Sequence

from deploy.verify.report import RUN, Finding, Outcome

_NAMES_MAX = 5
_FIX = (
    "inv verify again; where the same assertions are missing, restore tests/testinfra and"
    " pyproject.toml from git"
)


def unmade(
    implied: Mapping[str, Mapping[str, int]], outcomes: Sequence[Outcome], why: str | None
) -> list[Finding]:
    """
    Return a finding for each host on which not every implied assertion was made to its end.

    A skipped assertion was not made, and neither was one that is expected to fail.  A case that ran
    twice counts once.

    Args:
        implied: Number of cases of each assertion, by host.
        why: What ended the run early; None: nothing did.  Then every host has a finding.
    """
    findings = []
    for host, tests in implied.items():
        made = [outcome for outcome in outcomes if outcome.host == host and outcome.was_made]
        missing = _missing(tests, made)
        if why is None and not missing:
            continue
        reasons = [why] if why is not None else []
        if missing:
            count = sum(tests.values())
            shown = ", ".join(missing[:_NAMES_MAX]) + (", ..." if missing[_NAMES_MAX:] else "")
            reasons.append(f"{len(missing)} of {count} assertions were not made: {shown}")
        findings.append(Finding(host, RUN, "; ".join(reasons), fix=_FIX))
    return findings


def _missing(tests: Mapping[str, int], made: Iterable[Outcome]) -> list[str]:
    """
    Return the name of an assertion for each of its cases that is missing.
    """
    cases = {(outcome.test, outcome.case) for outcome in made}
    missing: list[str] = []
    for test, count in tests.items():
        ran = sum(name == test for name, _ in cases)
        missing += [test] * max(0, count - ran)
    return missing
