"""
Resource of the certificate of the public port, which a running HAProxy takes without a reload.
"""

import hashlib
import hmac
from datetime import datetime
from typing import Literal

from cryptography import x509
from pydantic import Field

from deploy.certificates import acme
from deploy.certificates.authority import is_current, is_of_namesake
from deploy.certificates.pair import names_of
from deploy.certificates.shown import parse_shown, shown_certificate
from deploy.host import layout
from deploy.host.files import UNFINISHED
from deploy.host.protocol import FactQuery, Facts, PathFacts
from deploy.provision.requirements import Frozen, HostRefusal
from deploy.provision.resource import Difference, Resource, attributes, occupied


class Issuer(Frozen):
    """
    The fleet's own authority.

    Attributes:
        pem: Its certificate.
        now: Time at which the certificates that it issued are judged.
    """

    pem: str
    now: datetime


class AcmeIssuer(Frozen):
    """
    An ACME server.

    Attributes:
        now: Time at which certificates are judged.
    """

    now: datetime


class Certificate(Resource):
    """
    Certificate and key in one file, for root alone; the host program replaces it.

    Attributes:
        pem: The certificate, its signers, the key.
        mac_key: As in `resources.File`: the content is a secret.
        issuer: Where it is the fleet's own authority or an ACME server, the host keeps another
            certificate that is as good.
        ends: Last day of the certificate, such as 2027-02-24.
    """

    kind: Literal["certificate"] = "certificate"
    path: str
    pem: str = Field(repr=False)
    mac_key: str = Field(repr=False)
    ends: str
    issuer: Issuer | AcmeIssuer | None = None

    @property
    def name(self) -> str:
        return self.path

    @property
    def mac(self) -> str:
        key = bytes.fromhex(self.mac_key)
        return hmac.new(key, self.pem.encode(), hashlib.sha256).hexdigest()

    @property
    def query(self) -> FactQuery:
        return FactQuery(
            secrets={self.path: self.mac_key},
            certificates=(self.path,) if self.issuer else (),
            listings=(layout.CERTIFICATES,),
        )

    def refusal(self, facts: Facts) -> HostRefusal | None:
        return occupied(facts, self.path, "file") or self._of_another_authority(facts)

    def _of_another_authority(self, facts: Facts) -> HostRefusal | None:
        """
        Return why the host keeps its certificate, where another authority of this fleet issued it.

        Two machines that each made one would replace each other's, and clients trust one of them.
        """
        found = facts.paths[self.path]
        own = parse_shown(found.certificate or "") if found else None
        if own is None or not isinstance(self.issuer, Issuer):
            return None
        authority = x509.load_pem_x509_certificate(self.issuer.pem.encode())
        if not is_of_namesake(own, authority):
            return None
        return HostRefusal(
            error="PreconditionError",
            why=f"the certificate in {self.path} is of another authority with the name of this "
            "fleet's: clients may trust that one alone",
            fix="copy the directory service.tls.authority from the machine that has it; or give "
            "clients slipway-ca.pem of this one, then: inv certs.renew",
        )

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None:
            return Difference(change=f"create, valid until {self.ends}")
        wrong = attributes(found, "file", "root", "root", "0600")
        is_kept = self._keeps(found)
        if is_kept and self._is_worse_than(found):
            return None  # modes and leftovers are mended from the machine that has the certificate
        if found.mac != self.mac and not is_kept:
            wrong = [f"new certificate, valid until {self.ends}", *wrong]
        if any(name.startswith(UNFINISHED) for name in facts.listings[layout.CERTIFICATES]):
            wrong.append("a replacement that was cut off")
        return Difference(change=", ".join(wrong)) if wrong else None

    def replaces(self, facts: Facts | None) -> str | None:
        """
        Return the SHA-256 of the certificate that *facts* show; None: none, or it is not known.
        """
        found = facts.paths.get(self.path) if facts else None
        shown = shown_certificate(found.certificate or "") if found else None
        return shown.sha256 if shown else None

    def _is_worse_than(self, found: PathFacts) -> bool:
        """
        Return whether a placeholder would replace a certificate that clients accept.
        """
        own = parse_shown(found.certificate or "")
        wanted = x509.load_pem_x509_certificate(self.pem.encode())
        return own is not None and acme.is_placeholder(wanted) and not acme.is_placeholder(own)

    def _keeps(self, found: PathFacts) -> bool:
        """
        Return whether the host's own certificate is as good: another operator got it.
        """
        own = parse_shown(found.certificate or "")
        if self.issuer is None or own is None:
            return False
        wanted = x509.load_pem_x509_certificate(self.pem.encode())
        if isinstance(self.issuer, AcmeIssuer):
            return acme.keeps(own, wanted, self.issuer.now)
        authority = x509.load_pem_x509_certificate(self.issuer.pem.encode())
        return is_current(own, authority, names_of(wanted), self.issuer.now)
