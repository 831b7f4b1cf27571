import pytest

from deploy.cli.report import provision_text
from deploy.provision.report import Change, Failure, ProvisionReport


@pytest.mark.parametrize(
    ("check", "changed", "failed", "text"),
    [
        (True, ("n1", "n2"), (), "0 of 2 hosts as pinned; 2 changes to make in 1.0s"),
        (True, ("n2",), (), "1 of 2 hosts as pinned; 1 changes to make in 1.0s"),
        (True, (), (), "2 of 2 hosts as pinned; 0 changes to make in 1.0s"),
        (False, ("n1", "n2"), (), "2 of 2 hosts as pinned; 2 changes in 1.0s"),
        (False, ("n2",), ("n2",), "1 of 2 hosts as pinned; 1 changes in 1.0s"),
    ],
)
def test_the_sum_counts_the_hosts_that_are_as_pinned_now(check, changed, failed, text):
    """
    A check of bare hosts has none, although each could be compared.
    """
    report = ProvisionReport(
        check=check,
        ok=tuple(host for host in ("n1", "n2") if host not in failed),
        changes=tuple(Change(host, "packages", "install haproxy") for host in changed),
        failed=tuple(Failure(host, "why", "fix", "CommandFailed") for host in failed),
        took_s=1.0,
    )
    assert provision_text(report) == text
