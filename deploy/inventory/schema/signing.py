"""
The key `signing`.  Pure.
"""

from deploy.inventory.names import FilePath, Identity
from deploy.inventory.schema.strict import Strict


class Signing(Strict):
    """
    The key that signs bundles, and the signers that hosts accept.
    """

    identity: Identity
    key: FilePath  # private key, for `inv bundle`
    allowed_signers: FilePath  # in the format of ssh-keygen(1), ALLOWED SIGNERS
