"""
The key `service.tls`.  Pure.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from deploy.inventory.names import (
    Address,
    DirectoryUrl,
    FilePath,
    HookName,
    Mailbox,
    is_public_name,
)
from deploy.inventory.schema.strict import Port, Strict


class Acme(Strict):
    """
    Where certificates come from with kind: acme, and how names are proven.

    Attributes:
        server: URL of the ACME server's directory.
        email: For the account; None: without one.
        http_port: Port of the hosts on which HAProxy answers HTTP-01 challenges.  The ACME server
            connects to port 80 of each name.
        dns_hook: Program that sets and removes TXT records for DNS-01 challenges; None: HTTP-01.
    """

    server: DirectoryUrl = "https://acme-v02.api.letsencrypt.org/directory"
    email: Mailbox | None = None
    http_port: Port = 80
    dns_hook: HookName | None = None


class Tls(Strict):
    """
    TLS of the public port.

    Attributes:
        kind: plain: HTTP without TLS.  files: the operator's certificate, on all hosts.
            internal: the fleet's own authority issues a certificate for each host.  acme: an ACME
            server does, such as Let's Encrypt.
        certificate: PEM file: the certificate, then those that sign it.
        key: PEM file of its private key, 0600; it is sent to hosts.
        authority: What clients trust.  With files and acme a PEM file, None: what this machine
            trusts; with acme this machine trusts it too when it asks the ACME server.  With
            internal the directory of the authority, see `inv certs.create`.
        names: DNS names and addresses that clients use; with internal, beside the name and the
            address of each host.  With acme the DNS names of one certificate for all hosts; none:
            each host has a certificate for its own DNS name.
        acme: Read with kind acme alone.
    """

    kind: Literal["plain", "files", "internal", "acme"] = "plain"
    certificate: FilePath | None = None
    key: FilePath | None = None
    authority: FilePath | None = None
    names: tuple[Address, ...] = Field(default=(), max_length=50)
    acme: Acme = Acme()

    @property
    def is_on(self) -> bool:
        return self.kind != "plain"

    @property
    def http_challenge_port(self) -> int | None:
        """
        Port on which hosts answer HTTP-01 challenges; None: they answer none.
        """
        is_http = self.kind == "acme" and self.acme.dns_hook is None
        return self.acme.http_port if is_http else None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        has_files = self.certificate is not None and self.key is not None
        if self.kind == "plain" and self != Tls.model_construct():
            raise ValueError("has keys that kind: plain does not read")
        if self.kind == "files" and not has_files:
            raise ValueError("kind: files needs certificate and key")
        if self.kind == "internal" and self.authority is None:
            raise ValueError("kind: internal needs authority, the directory of inv certs.create")
        if self.kind in ("internal", "acme") and (self.certificate or self.key):
            raise ValueError("has certificate or key, which only kind: files reads")
        wrong = [name for name in self.names if not is_public_name(name)]
        if self.kind == "acme" and wrong:
            raise ValueError(f"kind: acme needs names with a dot, and {wrong[0]} is none")
        return self
