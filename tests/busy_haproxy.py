"""
Requests at a fixed rate to a real HAProxy with two counting slots, on a machine that is kept busy.

    python -m tests.busy_haproxy [--busy 8] [--rate 40] [--seconds 60] [--work 0.2]
        [--ready-after 0] [--only-one] [--config rendered|one-limit|no-limit]

Each request has a connection of its own.  Prints one JSON object: {"requests", "lost", "p50_ms",
"p99_ms", "out_s"}, where out_s is how long HAProxy had each slot out of the traffic, seen every
100 ms.  `one-limit` and `no-limit` are the configurations without a second backend of checks: with
a limit of 5 s for a check, and with none, where the interval of 0.5 s is the limit.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from deploy.host.slots.haproxy import Haproxy
from tests.local_host import short_directory
from tests.unit.deploy.provision.public_port import post
from tests.unit.deploy.provision.two_slots import TwoSlots

BUSY = [sys.executable, "-c", "while True: pass"]
POLL_S = 0.1


def one_limit(text):
    text = re.sub(r"(?m)^ +use-server .*\n", "", text)
    return text.replace("timeout check 1h", "timeout check 5s")


def no_limit(text):
    return re.sub(r"(?m)^ +timeout check .*\n", "", one_limit(text))


CONFIGS = {"rendered": None, "one-limit": one_limit, "no-limit": no_limit}


class Load:
    """
    Sends requests at a fixed rate, whether earlier ones were answered or not.

    Attributes:
        answers: Status and seconds of each request.
    """

    def __init__(self, port):
        self._port = port
        self.answers = []

    def run(self, rate, seconds):
        start_s = time.monotonic()
        threads = []
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, start_s + number / rate - time.monotonic()))
            threads.append(threading.Thread(target=self._send, args=(number,)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _send(self, number):
        began_s = time.monotonic()
        try:
            status = self._port.send(post(b"r %d" % number))[0]
        except OSError:
            status = 0
        self.answers.append((status, time.monotonic() - began_s))


class Watch(threading.Thread):
    """
    Attributes:
        out_s: Seconds that each slot was not UP, by its name.
    """

    def __init__(self, port, names):
        super().__init__(daemon=True)
        self._proxy = Haproxy(SimpleNamespace(haproxy=port.ask))
        self.out_s = dict.fromkeys(names, 0.0)
        self.ended = threading.Event()

    def run(self):
        before_s = time.monotonic()
        while not self.ended.wait(POLL_S):
            servers = self._proxy.servers()
            now_s = time.monotonic()
            for name in self.out_s:
                if not servers[name].status.startswith("UP"):
                    self.out_s[name] += now_s - before_s
            before_s = now_s


def measure(port, options):
    port.all_up()
    names = ["blue"] if options.only_one else list(port.slots)
    if options.only_one:
        port.set("green", state="maint")
    for slot in port.slots.values():
        slot.work_s, slot.ready_after_s = options.work, options.ready_after
    load, watch = Load(port), Watch(port, names)
    busy = [subprocess.Popen(BUSY) for _ in range(options.busy)]
    try:
        watch.start()
        load.run(options.rate, options.seconds)
    finally:
        watch.ended.set()
        watch.join()
        for process in busy:
            process.kill()
            process.wait()
    taken_ms = statistics.quantiles([1000 * taken_s for _, taken_s in load.answers], n=100)
    return {
        "requests": len(load.answers),
        "lost": sum(status != 200 for status, _ in load.answers),
        "p50_ms": round(taken_ms[49]),
        "p99_ms": round(taken_ms[98]),
        "out_s": {name: round(seconds, 1) for name, seconds in watch.out_s.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--busy", type=int, default=8)
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--work", type=float, default=0.2)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--only-one", action="store_true")
    parser.add_argument("--config", choices=CONFIGS, default="rendered")
    options = parser.parse_args()
    with short_directory() as folder:
        port = TwoSlots(Path(folder), is_quick=False, edit=CONFIGS[options.config])
        try:
            print(json.dumps(measure(port, options)))
        finally:
            port.close()


if __name__ == "__main__":
    main()
