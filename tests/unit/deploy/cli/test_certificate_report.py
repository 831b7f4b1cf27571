"""
What `inv status` and `inv certs.*` show of certificates.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from deploy.certificates.shown import ShownCertificate
from deploy.cli import certificate_report, report, tables
from deploy.cli.grid import Cell
from deploy.errors import TransportError
from deploy.release.findings import certificate_findings, find, fleet_error
from tests.builders import make_settled

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
LOST = TransportError("n9: no answer", why="timed out", fix="ping it", host="n9")


def with_certificate(left, name="n1"):
    shown = ShownCertificate(("n1", "192.0.2.11"), "CN=slipway gpu", NOW, NOW + left, "ab" * 32)
    return make_settled(name, has_tls=True, certificate=shown)


def days(number):
    return timedelta(days=number, hours=1)


@pytest.mark.parametrize(
    ("left", "text", "style"),
    [
        (days(60), "60 days", "green"),
        (days(14), "14 days", "green"),
        (days(13), "13 days", "red"),
        (timedelta(seconds=-1), "expired", "red"),
    ],
)
def test_the_days_that_are_left_are_red_under_fourteen(left, text, style):
    """
    On the first line of each host.
    """
    table = tables.status_table("gpu", {"n1": with_certificate(left)}, (), NOW)
    assert table.columns[-1] == "certificate"
    assert [row[-1] for row in table.rows] == [Cell(text, style), ""]


def test_a_fleet_without_tls_has_no_such_column():
    """
    A host that is lost or plain beside one with TLS has a dash.
    """
    assert "certificate" not in tables.status_table("gpu", {"n1": make_settled()}, (), NOW).columns
    seen = {"n1": with_certificate(days(60)), "n2": make_settled("n2"), "n9": LOST}
    table = tables.status_table("gpu", seen, (), NOW)
    assert [row[-1] for row in table.rows][2:] == ["-", "", "-"]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_an_expired_certificate_is_an_error_and_one_that_ends_soon_is_shown():
    """
    The exit code follows; without a time nothing is judged.
    """
    for left, is_found, is_error in (
        (days(60), False, False),
        (days(13), True, False),
        (timedelta(0), True, True),
    ):
        findings = find({"n1": with_certificate(left)}, now=NOW)
        assert bool(findings) == is_found
        assert (fleet_error(findings) is not None) == is_error
    assert find({"n1": with_certificate(timedelta(0))}) == ()
    assert "inv certs.renew --limit n1" in findings[0].fix


def test_a_port_that_shows_none_is_an_error():
    """
    The fleet has TLS there, and clients cannot connect.
    """
    findings = certificate_findings({"n1": make_settled(has_tls=True), "n9": LOST}, NOW)
    assert [finding.host for finding in findings] == ["n1", "n9"]
    assert fleet_error(findings) is not None
    assert certificate_findings({"n1": make_settled()}, NOW) == ()


def test_plain_http_where_the_fleet_file_has_tls_is_an_error():
    """
    Tokens would travel in the clear; `inv status` and `inv certs.show` say so.
    """
    plain = {"n1": make_settled()}
    for found in (certificate_findings(plain, NOW, wants_tls=True), find(plain, wants_tls=True)):
        assert [finding.host for finding in found] == ["n1"]
        assert "plain HTTP" in found[0].what
        assert fleet_error(found).exit_code == 26
    assert find(plain) == ()
    assert certificate_findings({"n1": with_certificate(days(60))}, NOW, wants_tls=True) == ()
    cells = [certificate_report.certificates_table(plain, NOW, w).rows[0][1] for w in (True, False)]
    assert cells == [Cell("plain HTTP", "red"), "plain HTTP"]


def test_another_certificate_than_the_file_is_an_error():
    """
    A restart of HAProxy would bring the old one back.
    """
    state = replace(with_certificate(days(60)), is_certificate_kept=False)
    (finding,) = certificate_findings({"n1": state}, NOW)
    assert "than its file" in finding.what
    assert "inv certs.renew --limit n1" in finding.fix
    assert fleet_error([finding]) is not None


def test_the_documents_have_the_certificate():
    """
    Of a host with TLS; null where it shows none.
    """
    seen = {
        "n1": with_certificate(days(60)),
        "n2": make_settled("n2"),
        "n3": make_settled("n3", has_tls=True),
        "n9": LOST,
    }
    hosts = {host["host"]: host for host in report.status_json("gpu", seen)["hosts"]}
    assert hosts["n1"]["certificate"]["not_after"] == "2027-01-25T13:00:00Z"
    assert "certificate" not in hosts["n2"]
    assert hosts["n3"]["certificate"] is None
    document = certificate_report.certificates_json("gpu", seen, NOW)
    assert document["hosts"][0]["certificate"]["days_left"] == 60
    assert [host.get("tls") for host in document["hosts"]] == [True, False, True, None]
    table = certificate_report.certificates_table(seen, NOW)
    assert [row[0] for row in table.rows] == list(seen)
    assert table.rows[0][3] == "n1, 192.0.2.11"
