"""
Looks at a lab host again and again, by a program in its namespaces that uses nothing of ours.
"""

import subprocess
import threading
from collections.abc import Callable

from deploy.drill.host_state import HostState, parse_state
from deploy.host.layout import BACKEND, BOOT_ID, HAPROXY_SOCKET, PENDING
from deploy.lab import host as lab_host
from deploy.lab.commands import PATH
from deploy.lab.config import LabConfig
from runtime.contract import VERSION_HEADER

# Runs on the host, by its own Python: arguments are interval, port (0: ask nothing) and prompt.
_PROBE = f"""
import http.client, json, os, socket, sys, time
interval, port, prompt = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def servers():
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(2)
    try:
        link.connect({HAPROXY_SOCKET!r})
        link.sendall(b"show stat\\n")
        data = b""
        while chunk := link.recv(65536):
            data += chunk
    except OSError:
        return {{}}
    finally:
        link.close()
    lines = data.decode(errors="replace").lstrip("# ").splitlines()
    names = lines[0].split(",") if lines else []
    rows = [dict(zip(names, line.split(","))) for line in lines[1:] if line]
    return {{r["svname"]: {{"weight": int(r["weight"] or 0), "status": r["status"]}} for r in rows
            if r.get("pxname") == {BACKEND!r} and r.get("svname") not in ("BACKEND", "FRONTEND")}}
def answer():
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        body = json.dumps({{"prompt": prompt, "max_tokens": 1}})
        link.request("POST", "/generate", body, {{"Content-Type": "application/json"}})
        got = link.getresponse()
        got.read()
        return got.getheader({VERSION_HEADER!r}) if got.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        link.close()
while True:
    at_s = time.monotonic()
    with open({BOOT_ID!r}) as file:
        boot_id = file.read().strip()
    print(json.dumps({{"at_s": at_s, "servers": servers(), "version": answer() if port else None,
                      "is_armed": os.path.exists({PENDING!r}), "boot_id": boot_id}}), flush=True)
    time.sleep(max(0.01, interval - (time.monotonic() - at_s)))
"""


class HostWatch:
    """
    The latest state of one host.

    Args:
        interval_s: Time between two looks.
        port: Public port to send a request to in each look; 0: read the weights alone.
        on_state: Called with each state, in a thread of its own.
    """

    def __init__(
        self,
        config: LabConfig,
        name: str,
        *,
        interval_s: float,
        port: int,
        prompt: str = "",
        on_state: Callable[[str, HostState], None] = lambda host, state: None,
    ) -> None:
        self.name, self._config, self._on_state = name, config, on_state
        self._argv = [str(interval_s), str(port), prompt]
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._last: HostState | None = None

    @property
    def last(self) -> HostState | None:
        """
        The newest state since the last `start`.
        """
        with self._lock:
            return self._last

    def start(self) -> bool:
        """
        Begin, or begin again after a boot; False if the host has no init yet.
        """
        self.stop()
        init = lab_host.leader(self._config, self.name)
        if init is None:
            return False
        self._process = subprocess.Popen(
            lab_host.inside_argv(init, ["python3", "-I", "-c", _PROBE, *self._argv]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PATH": PATH, "LANG": "C.UTF-8"},
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return True

    def stop(self) -> None:
        """
        End; the program on the host ends at its next line, which nobody reads.
        """
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        with self._lock:
            self._last = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                state = parse_state(line)
                if state is None or process is not self._process:
                    continue
                with self._lock:
                    self._last = state
                self._on_state(self.name, state)
