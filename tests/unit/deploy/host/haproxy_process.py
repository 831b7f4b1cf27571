"""
A real HAProxy in front of the two runtimes of a test host, configured as by provision.
"""

import http.client
import json
import shutil
import socket
import subprocess
import time

from deploy.host.slots.haproxy import Haproxy

PROGRAM = shutil.which("haproxy") or "/usr/sbin/haproxy"

CONFIG = """
global
    stats socket {run}/haproxy.sock mode 600 level admin
    server-state-file {state}
defaults
    mode http
    load-server-state-from-file global
    http-reuse safe
    option http-buffer-request
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout http-request 30s
    timeout check 1s
    retries 1
    option redispatch 1
    retry-on conn-failure empty-response 500
frontend public
    bind unix@{run}/public.sock
    default_backend runtime
backend runtime
    balance roundrobin
    option httpchk
    http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host slipway
    http-check expect status 200
    default-server check inter 50ms fall 2 rise 1 weight 100 disabled
    server blue unix@{run}/blue/runtime.sock
    server green unix@{run}/green/runtime.sock
"""


class HaproxyProcess:
    def __init__(self, host):
        self._run = host.layout.run
        self._config = host.root / "haproxy.cfg"
        self._config.write_text(CONFIG.format(run=self._run, state=host.layout.haproxy_state))
        self.control = Haproxy(host.system)
        self._process = None
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            [PROGRAM, "-db", "-f", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        until = time.monotonic() + 60
        while True:
            try:
                return self.control.ask("show info")
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    self.stop()
                    raise AssertionError(f"HAProxy did not start: {error}") from error
                time.sleep(0.01)

    def stop(self):
        self._process.kill()
        self._process.communicate()

    def client(self):
        """
        Return a keep-alive connection to the public port.
        """
        connection = http.client.HTTPConnection("public", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self._run / "public.sock"))
        return connection

    def ask(self, connection=None, prompt="hi"):
        """
        Return the text of the public port's answer, or its status.
        """
        connection = connection or self.client()
        connection.request("POST", "/generate", body=json.dumps({"prompt": prompt}).encode())
        answer = connection.getresponse()
        body = answer.read()
        return json.loads(body)["text"] if answer.status == 200 else answer.status

    def share(self, count=20):
        """
        Return how many of *count* requests on one connection each slot answered.
        """
        connection = self.client()
        texts = [self.ask(connection) for _ in range(count)]
        return {text: texts.count(text) for text in sorted(set(texts), key=str)}
