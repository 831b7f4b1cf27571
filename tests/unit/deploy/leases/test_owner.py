import pytest

from deploy.errors import UsageError
from deploy.leases.owner import actor, owner


def test_two_runs_of_one_person_are_two_owners():
    """
    Also in one process.
    """
    assert owner() != owner()
    assert owner().startswith(f"{actor()}:")


@pytest.mark.parametrize("error", [KeyError, OSError])  # OSError: since Python 3.13
def test_a_user_without_a_name_is_told_what_to_set(monkeypatch, error):
    """
    A job for CI whose user has no passwd entry.
    """

    def no_name():
        raise error("no username set in the environment")

    monkeypatch.setattr("getpass.getuser", no_name)
    with pytest.raises(UsageError) as caught:
        actor()
    assert "LOGNAME" in caught.value.fix
