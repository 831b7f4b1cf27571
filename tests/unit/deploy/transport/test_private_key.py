"""
When the SSH agent is asked for keys, for how long, and what a host says that refuses many.
"""

import threading

import paramiko
import pytest

from deploy.errors import TransportError
from deploy.inventory.schema import Hop
from deploy.transport import private_key
from deploy.transport.private_key import identities
from deploy.transport.ssh import connect


class Agent:
    """
    An agent that never answers, as one does whose forwarded connection has died.
    """

    asked = 0

    def __init__(self):
        Agent.asked += 1
        threading.Event().wait(20)


@pytest.fixture
def key(tmp_path, monkeypatch):
    monkeypatch.setattr(paramiko, "Agent", Agent)
    monkeypatch.setattr(private_key, "_AGENT_S", 0.05)
    monkeypatch.setattr(Agent, "asked", 0)
    paramiko.ECDSAKey.generate().write_private_key_file(str(tmp_path / "key"))
    return tmp_path / "key"


def test_a_key_in_a_file_needs_no_agent(key):
    assert len(identities("n1", [key], only_keys=True).keys) == 1
    assert Agent.asked == 0


def test_an_agent_that_hangs_is_given_up(key):
    """
    It would keep every host of a rollback waiting.
    """
    assert len(identities("n1", [key], only_keys=False).keys) == 1
    assert Agent.asked == 1


class AgentKey(paramiko.AgentKey):
    def __init__(self, agent, key):
        super().__init__(agent, key.asbytes())
        self._agent, self._key = agent, key

    def sign_ssh_data(self, data, algorithm=None):
        assert not self._agent.is_closed
        self._agent.signed += 1
        return self._key.sign_ssh_data(data, algorithm).asbytes()


class WorkingAgent:
    """
    An agent with *key*.
    """

    def __init__(self, key):
        self._key, self.is_closed, self.signed = key, False, 0

    def get_keys(self):
        return (AgentKey(self, self._key),)

    def close(self):
        self.is_closed = True


def host_with(sshd, keys, *, only_keys):
    hop = Hop.model_construct(
        user="root",
        address="127.0.0.1",
        port=sshd.port,
        keys=tuple(keys),
        only_keys=only_keys,
        known_hosts=(sshd.known_hosts,),
        known_as=("127.0.0.1", sshd.port),
    )
    return sshd.host().model_copy(update={"route": (hop,)})


def write_keys(folder, count):
    for number in range(count):
        path = folder / f"key{number}"
        paramiko.ECDSAKey.generate().write_private_key_file(str(path))
        yield path


def test_the_agent_is_left_once_the_host_took_a_key(sshd, monkeypatch, tmp_path):
    """
    Each hop of each connection would hold a socket of it.
    """
    agent = WorkingAgent(paramiko.ECDSAKey.from_private_key_file(str(sshd.client_key)))
    monkeypatch.setattr(paramiko, "Agent", lambda: agent)
    connection = connect(host_with(sshd, write_keys(tmp_path, 1), only_keys=False))
    assert (agent.is_closed, agent.signed) == (True, 1)
    channel = connection.client.get_transport().open_session()
    channel.close()
    connection.close()


def test_an_agent_without_a_key_for_the_host_is_left_at_once(monkeypatch, tmp_path):
    agent = WorkingAgent(paramiko.ECDSAKey.generate())
    monkeypatch.setattr(agent, "get_keys", tuple)
    monkeypatch.setattr(paramiko, "Agent", lambda: agent)
    loaded = identities("n1", list(write_keys(tmp_path, 1)), only_keys=False)
    assert (agent.is_closed, loaded.agent, len(loaded.keys)) == (True, None, 1)


def test_a_host_that_takes_no_more_keys_is_not_said_to_be_down(sshd, tmp_path):
    """
    sshd closes the connection after MaxAuthTries keys; the remedy is one key, and not a ping.
    """
    with pytest.raises(TransportError, match=r"closes the connection after \d+ keys") as caught:
        connect(host_with(sshd, write_keys(tmp_path, 14), only_keys=True))
    assert "MaxAuthTries" in caught.value.why
    assert "ssh.key" in caught.value.fix


def test_a_refused_key_is_a_refused_key(sshd, tmp_path):
    """
    Negative control: the connection stays, and the host has refused all.
    """
    with pytest.raises(TransportError, match="refuses the key"):
        connect(host_with(sshd, write_keys(tmp_path, 3), only_keys=True))
