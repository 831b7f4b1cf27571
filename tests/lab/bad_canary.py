"""
A runtime that goes bad once clients use it: takes the place of runtime/__main__.py in a bundle.

The honest one is beside it as runtime/honest.py, and stays honest to the host program, so that
/readyz answers 200, /metrics is true and golden prompts get their answers.  MODE in the bundle's
runtime/mode.py says what becomes of the requests that HAProxy sends.
"""

import time

from runtime.honest import main
from runtime.mode import MODE

from runtime.server import process
from runtime.server.connection import HttpConnection

HONEST_REQUESTS = 25  # more than a canary needs to pass
PROMOTED_RPS = 8  # of clients; a canary gets less
FAILED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

served = 0
times = []


def is_bad():
    """
    Count one request of a client; return whether it is one too many.
    """
    global served
    served += 1
    if MODE == "promoted":
        now_s = time.monotonic()
        times[:] = [at_s for at_s in (*times, now_s) if at_s > now_s - 1]
        return len(times) > PROMOTED_RPS
    return served > (0 if MODE == "close" else HONEST_REQUESTS)


class Connection(HttpConnection):
    is_spent = False  # answered badly, or not at all: what else arrives is dropped

    def data_received(self, data):
        if self.is_spent:
            return
        # The host program and HAProxy's checks name the host slipway; HAProxy writes "host" small.
        is_client = data.startswith(b"POST /generate") and b"ost: slipway" not in data
        is_check = data.startswith(b"GET /readyz") and b"\r\nhost: slipway" in data
        if is_check and MODE == "silent" and served >= HONEST_REQUESTS:
            self.fail()
        elif not is_client or not is_bad() or MODE == "silent":
            super().data_received(data)  # a silent one serves until HAProxy's checks notice
        elif MODE == "promoted":
            self.fail()
        else:
            self.is_spent = True
            if MODE == "close":
                self.transport.abort()

    def fail(self):
        self.is_spent = True
        self.transport.write(FAILED)
        self.transport.close()


process.HttpConnection = Connection

if __name__ == "__main__":
    raise SystemExit(main())
