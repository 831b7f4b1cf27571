"""
An SSH server on the loopback interface, in this process: paramiko's, which runs what it is asked
to with /bin/sh on this machine.
"""

import contextlib
import socket
import subprocess
import threading

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST

from deploy.inventory.schema import Host, Ssh

USER = "root"  # so that commands run without sudo


class LoopbackSshd:
    """
    Attributes:
        commands: Command lines that clients sent, in order.
        logins: Accepted logins.
    """

    def __init__(self, folder):
        self.folder = folder
        self.host_key = paramiko.ECDSAKey.generate()
        self.more_host_keys = []  # of other types
        self.client_key = folder / "id_ecdsa"
        client_key = paramiko.ECDSAKey.generate()
        client_key.write_private_key_file(str(self.client_key))
        self._accepted = client_key.get_base64()
        self.commands, self.logins = [], 0
        self._transports, self._processes = [], []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.known_hosts = folder / "known_hosts"
        self.record(self.host_key)

    def record(self, key):
        """
        Let clients expect *key* of this server; None: no key is recorded.
        """
        line = f"[127.0.0.1]:{self.port} {key.get_name()} {key.get_base64()}\n" if key else ""
        self.known_hosts.write_text(line)

    def host(self, name="n1", **ssh):
        """
        Return this server as a host of a fleet.
        """
        settings = {
            "user": USER,
            "port": self.port,
            "key": self.client_key,
            "known_hosts": self.known_hosts,
            "connect_timeout": 60.0,
            "command_timeout": 20.0,
            "keepalive": 2.0,
        }
        ssh = Ssh.model_construct(**Ssh().model_dump() | settings | ssh)
        return Host.model_construct(
            name=name, address="127.0.0.1", groups=(), row="torch-2.13-cpu", ssh=ssh, vars={}
        )

    def drop(self):
        """
        Close every connection without a word.
        """
        for transport in self._transports:
            transport.close()

    def run_command(self, channel, command):
        """
        Answer *command* on *channel*, and close it.
        """
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.append(process)
        streams = [
            threading.Thread(target=_copy, args=(process.stdout, channel.sendall), daemon=True),
            threading.Thread(
                target=_copy, args=(process.stderr, channel.sendall_stderr), daemon=True
            ),
        ]
        threading.Thread(target=_feed, args=(channel, process.stdin), daemon=True).start()
        for stream in streams:
            stream.start()
        status = process.wait()
        for stream in streams:
            stream.join()
        with contextlib.suppress(OSError, EOFError):
            channel.send_exit_status(status if status >= 0 else 128 - status)
            channel.close()

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self.drop()
        for process in self._processes:
            process.kill()
            process.wait()

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        # As sshd does: an answer of several packets does not wait for an acknowledgement.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = _Transport(connection)
        for key in (self.host_key, *self.more_host_keys):
            transport.add_server_key(key)
        self._transports.append(transport)
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=_Server(self))


def _handle_request(channel, message):
    """
    Answer a request on *channel*, then begin what it asked for.

    A command that ended before would close the channel: its client would take that for a refusal.
    """
    channel.begin = lambda: None
    paramiko.Channel._handle_request(channel, message)
    channel.begin()


class _Transport(paramiko.Transport):
    _channel_handler_table = paramiko.Transport._channel_handler_table | {
        MSG_CHANNEL_REQUEST: _handle_request
    }


class _Server(paramiko.ServerInterface):
    def __init__(self, sshd):
        self._sshd = sshd

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        if username == USER and key.get_base64() == self._sshd._accepted:
            self._sshd.logins += 1
            return paramiko.AUTH_SUCCESSFUL
        return paramiko.AUTH_FAILED

    def check_channel_request(self, kind, chanid):
        is_session = kind == "session"
        return paramiko.OPEN_SUCCEEDED if is_session else paramiko.OPEN_FAILED_UNKNOWN_CHANNEL_TYPE

    def check_channel_exec_request(self, channel, command):
        self._sshd.commands.append(command.decode())
        run = self._sshd.run_command
        channel.begin = threading.Thread(
            target=run, args=(channel, command.decode()), daemon=True
        ).start
        return True


def _copy(pipe, send):
    with contextlib.suppress(OSError, EOFError):
        while data := pipe.read1(65536):
            send(data)


def _feed(channel, pipe):
    with contextlib.suppress(OSError):
        while data := channel.recv(65536):
            pipe.write(data)
            pipe.flush()
    with contextlib.suppress(OSError):
        pipe.close()
