"""
The key `release.notify`.  Pure.
"""

from typing import Literal

from deploy.inventory.names import HeaderName, SecretName, WebhookTarget
from deploy.inventory.schema.strict import Strict


class WebhookHeader(Strict):
    """
    A header of every message, whose value is a secret.
    """

    name: HeaderName
    secret: SecretName


class Webhook(Strict):
    """
    Where the state of a release is posted: one message for each release, updated.

    Attributes:
        webhook: An https URL, or the name of a secret that has it.
        send: Every new state, or only how the release ended.
    """

    webhook: WebhookTarget
    headers: tuple[WebhookHeader, ...] = ()
    send: Literal["updates", "end"] = "updates"

    @property
    def secret(self) -> str | None:
        """
        The secret that has the URL; None: `webhook` is the URL.
        """
        return None if self.webhook.startswith("https://") else self.webhook
