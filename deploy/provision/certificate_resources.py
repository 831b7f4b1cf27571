"""
Resource of the certificate of the public port, which a running HAProxy takes without a reload.
"""

import hashlib
import hmac
from typing import Literal

from pydantic import Field

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.resource import Difference, Resource, attributes


class Certificate(Resource):
    """
    Certificate and key in one file, for root alone; the host program replaces it.

    Attributes:
        pem: The certificate, its signers, the key.
        mac_key: As in `resources.File`: the content is a secret.
        ends: Last day of the certificate, such as 2027-02-24.
    """

    kind: Literal["certificate"] = "certificate"
    path: str
    pem: str = Field(repr=False)
    mac_key: str = Field(repr=False)
    ends: str

    @property
    def name(self) -> str:
        return self.path

    @property
    def mac(self) -> str:
        key = bytes.fromhex(self.mac_key)
        return hmac.new(key, self.pem.encode(), hashlib.sha256).hexdigest()

    @property
    def query(self) -> FactQuery:
        return FactQuery(secrets={self.path: self.mac_key})

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None:
            return Difference(change=f"create, valid until {self.ends}")
        wrong = attributes(found, "file", "root", "root", "0600")
        if found.mac != self.mac:
            wrong = [f"new certificate, valid until {self.ends}", *wrong]
        return Difference(change=", ".join(wrong)) if wrong else None
