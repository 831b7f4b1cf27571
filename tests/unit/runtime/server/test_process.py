"""
The socket that a runtime listens on.
"""

import socket

from runtime.server.process import _bind
from tests.unit.runtime.serving import Runtime


def test_a_port_sends_without_delay():
    """
    Otherwise each token of a stream waits for the acknowledgement of the one before.
    """
    settings = Runtime().settings.model_copy(update={"socket": None, "port": 0})
    with _bind(settings) as listener, socket.create_connection(listener.getsockname()):
        listener.settimeout(20)
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
