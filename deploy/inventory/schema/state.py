"""
The key `state`.  Pure.
"""

from typing import Literal, Self

from pydantic import model_validator

from deploy.inventory.names import Endpoint, FilePath, KeyPrefix, SecretName, UserName
from deploy.inventory.schema.strict import Strict


class StateSettings(Strict):
    """
    Where the desired state of the fleet lives: on its hosts, or in an existing etcd.

    Attributes:
        ca: Certificates of the authorities that etcd's are signed by; None: those of this machine.
        cert, key: Client certificate and its key.
        user, password: Of etcd's own authentication.
        prefix: All keys of the fleet begin with it.
    """

    kind: Literal["hosts", "etcd"] = "hosts"
    endpoints: tuple[Endpoint, ...] = ()
    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None
    user: UserName | None = None
    password: SecretName | None = None
    prefix: KeyPrefix = "slipway"

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.kind == "etcd" and not self.endpoints:
            raise ValueError("etcd needs endpoints")
        if self.kind == "hosts" and self != StateSettings.model_construct():
            raise ValueError("has keys that only kind: etcd reads")
        for one, other in (("cert", "key"), ("user", "password")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} belong together")
        return self
