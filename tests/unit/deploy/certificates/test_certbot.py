"""
What certbot is told, and what its failures mean.
"""

import json
from pathlib import Path

import pytest

from deploy.certificates import certbot
from deploy.certificates.acme import CertificateOrder
from deploy.inventory.schema import Acme, Tls

ORDER = CertificateOrder("gpu", ("a.example.com", "b.example.com"), ("n1",))
LOG = Path("/l/letsencrypt.log")

# Of certbot 2.1 with pebble 2.4.
CHALLENGES = """\
Requesting a certificate for a.example.com and b.example.com

Certbot failed to authenticate some domains (authenticator: manual). The Certificate Authority reported these problems:
  Domain: b.example.com
  Type:   connection
  Detail: Get "http://b.example.com:5002/.well-known/acme-challenge/JHe5": dial tcp 127.0.0.1:5002: connect: connection refused

  Domain: a.example.com
  Type:   unauthorized
  Detail: \x1b[31mnot found

Hint: The Certificate Authority failed to verify the challenge files created by the --manual-auth-hook.

Some challenges have failed.
Ask for help or search for solutions at https://community.letsencrypt.org. See the logfile /l/letsencrypt.log or re-run Certbot with -v for more details.
"""  # noqa: E501


def problem(kind, detail="none"):
    """
    Return the answer of an ACME server as certbot's log has it.
    """
    urn = f"urn:ietf:params:acme:error:{kind}"
    return "HTTP 429\n\n" + json.dumps({"type": urn, "detail": detail, "status": 429}, indent=2)


def words(**keys):
    return certbot.arguments(
        Tls(kind="acme", acme=Acme(**keys)), Path("/x/acme"), ORDER, "python hook"
    )


def test_everything_of_certbot_is_in_one_private_folder():
    """
    Its defaults are /etc/letsencrypt and /var/log/letsencrypt.
    """
    argv = words()
    for flag in ("--config-dir", "--work-dir", "--logs-dir"):
        assert argv[argv.index(flag) + 1].startswith("/x/acme")
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "--domain"] == [*ORDER.names]
    assert argv[argv.index("--cert-name") + 1] == "gpu"


def test_keys_of_the_fleet_file_become_arguments():
    """
    Without dns_hook HTTP-01, without email an account without one.
    """
    assert "--register-unsafely-without-email" in words()
    argv = words(email="ops@example.com", dns_hook="hooks/dns", server="https://acme.test/d")
    for flag, value in (
        ("--email", "ops@example.com"),
        ("--preferred-challenges", "dns"),
        ("--server", "https://acme.test/d"),
    ):
        assert argv[argv.index(flag) + 1] == value


def test_certbot_gets_no_secret_of_the_environment():
    """
    Nor the Python settings of this program.
    """
    env = {"PATH": "/bin", "SLIPWAY_API_TOKEN": "s", "PYTHONPATH": "/x", "HTTPS_PROXY": "http://p"}
    assert certbot.environment(env, Tls()) == {
        "PATH": "/bin", "HTTPS_PROXY": "http://p", "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    private = Tls(kind="acme", authority=Path("/ca.pem"))
    assert certbot.environment(env, private)["REQUESTS_CA_BUNDLE"] == "/ca.pem"


def test_a_failed_challenge_names_each_domain():
    """
    In the server's words, which are quoted and made visible.
    """
    found = certbot.problem_of(CHALLENGES, problem("malformed"), LOG)
    assert found.kind == "connection"
    assert "b.example.com: Get" in found.why
    assert "a.example.com: " in found.why
    assert "\x1b" not in found.why
    assert "port 80" in found.fix
    assert not found.concerns_all


@pytest.mark.parametrize(
    ("kind", "fix", "concerns"),
    [
        ("rateLimited", "test server", "perhaps all"),
        ("caa", "CAA record", "one"),
        ("rejectedIdentifier", "service.tls.names", "one"),
        ("externalAccountRequired", "--eab-kid", "all"),
        ("invalidContact", "service.tls.acme.email", "all"),
        ("badNonce", "run it again", "one"),
        ("ofAnotherKind", str(LOG), "one"),
    ],
)
def test_the_type_of_the_servers_error_says_what_to_do(kind, fix, concerns):
    """
    Of several the last; certbot itself repeats a request after badNonce.
    """
    log = problem("userActionRequired") * (kind != "badNonce") + problem(kind, 'too "many"\n now')
    log += problem("badNonce")
    found = certbot.problem_of("An unexpected error occurred", log, LOG)
    assert found.kind == kind
    assert fix in found.fix
    assert (found.concerns_all, found.may_concern_all) == (
        concerns == "all", concerns == "perhaps all",
    )  # fmt: skip
    assert "\n" not in found.why


@pytest.mark.parametrize("output", ["", "Saving debug log to /l\nConnection refused\nAsk for help"])
def test_without_an_error_of_the_server_certbot_has_the_word(output):
    """
    The server does not answer, or certbot is broken.
    """
    found = certbot.problem_of(output, "a log without any", LOG)
    assert found.kind is None
    assert found.may_concern_all
    assert str(LOG) in found.fix
    assert ("Connection refused" in found.why) == bool(output)
