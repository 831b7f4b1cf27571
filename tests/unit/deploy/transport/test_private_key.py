"""
When the SSH agent is asked for keys, and for how long.
"""

import threading

import paramiko
import pytest

from deploy.transport import private_key
from deploy.transport.private_key import identities


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
    assert len(identities("n1", [key], only_keys=True)) == 1
    assert Agent.asked == 0


def test_an_agent_that_hangs_is_given_up(key):
    """
    It would keep every host of a rollback waiting.
    """
    assert len(identities("n1", [key], only_keys=False)) == 1
    assert Agent.asked == 1
