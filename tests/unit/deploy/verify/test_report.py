from pathlib import Path

from deploy.errors import VerifyFailed
from deploy.verify.report import Finding, Outcome, VerifyReport, read_junit

# As pytest 9.2 with testinfra 10.2 wrote it, shortened.
JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests">
<testsuite name="pytest" errors="1" failures="1" skipped="1" tests="4">
<testcase classname="tests.testinfra.test_users" name="test_a[slipway://n1]" time="0.2" />
<testcase classname="tests.testinfra.test_users" name="test_b[slipway://n2]" time="0.2">
<failure message="AssertionError: no shell&#10;assert 'a' == 'b'">long text</failure></testcase>
<testcase classname="tests.testinfra.test_unit" name="test_c[slipway://n2-blue]" time="0.2">
<properties><property name="slipway_host" value="n2" /></properties>
<skipped type="pytest.skip" message="nothing was released here">x</skipped></testcase>
<testcase classname="tests.testinfra.test_unit" name="test_d[slipway://n3]" time="0.2">
<error message="failed on setup with &quot;RuntimeError: gone&quot;">y</error></testcase>
</testsuite></testsuites>"""


def make_report(*failed):
    return VerifyReport(
        hosts=("n1", "n2"), passed=3, skipped=1, failed=failed, junit=Path("x.xml"), took_s=1.0
    )


def test_every_case_has_its_host_and_reason():
    """
    Failures and errors name the host, the test and the assertion.
    """
    assert read_junit(JUNIT) == (
        Outcome("n1", "test_a", "passed", case="test_a[slipway://n1]"),
        Outcome("n2", "test_b", "failed", "no shell", "test_b[slipway://n2]"),
        Outcome("n2", "test_c", "skipped", case="test_c[slipway://n2-blue]"),
        Outcome(
            "n3", "test_d", "failed", 'failed on setup with "RuntimeError: gone"',
            "test_d[slipway://n3]",
        ),
    )  # fmt: skip


def test_failures_of_several_hosts_are_one_error():
    """
    It lists each host with each assertion, and the command that fixes them.
    """
    error = make_report(Finding("n2", "test_b", "no shell"), Finding("n1", "test_a", "x")).error
    assert isinstance(error, VerifyFailed)
    assert "n2: test_b: no shell" in error.why
    assert "inv provision --limit n1,n2" in error.fix


def test_the_remedy_fits_each_host():
    """
    Provisioning is for hosts that differ; one that does not answer has the remedy of its error.
    """
    lost = [Finding(f"n{n}", "reachable", "gone", fix=f"start n{n}") for n in range(3, 9)]
    error = make_report(Finding("n1", "test_b", "no shell"), *lost).error
    assert error.fix == (
        "inv provision --limit n1, then inv verify; start n3; start n4; start n5; "
        "and 3 remedies more, with the hosts above; see x.xml"
    )
    assert "inv provision" not in make_report(*lost[:1]).error.fix


def test_a_report_without_failures_has_no_error():
    """
    A report without failures has no error.
    """
    assert make_report().error is None
    assert make_report().as_json()["ok"] is True
