"""
Says why an HTTP request failed, without any text of the server, the URL or the library.
"""

import os
import socket
import ssl


def describe(error: BaseException, timeout_s: float) -> str:
    """
    Return why a request with the limit *timeout_s* failed with *error*, as a part of a sentence.
    """
    import httpx  # loaded where it is used: it takes 0.1 s, and most commands need none

    if isinstance(error, httpx.TimeoutException):
        return f"it did not answer within {timeout_s:g} s"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "its certificate is not trusted"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS as expected"
        if isinstance(cause, socket.gaierror):
            return "its name does not resolve"
        if isinstance(cause, OSError) and cause.errno is not None:
            return f"no connection: {os.strerror(cause.errno)}"
        cause = cause.__cause__ or cause.__context__
    return f"the message could not be sent ({type(error).__name__})"
