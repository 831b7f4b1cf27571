import os
import stat
from dataclasses import replace

import pytest

from deploy.lab.config import LabConfig
from deploy.lab.lock import exclusive

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the lab needs root")


def test_hosts_get_files_that_their_users_can_read(tmp_path):
    """
    The tasks' private umask does not reach into the hosts: their users read /etc.  The lab's own
    folder and lock are private all the same.
    """
    config = replace(LabConfig.from_env({}), directory=tmp_path / "lab")
    before = os.umask(0o077)
    try:
        with exclusive(config, lambda _: None):
            (config.directory / "etc").mkdir()
            (config.directory / "etc/hosts").touch()
        after = os.umask(0o077)
    finally:
        os.umask(before)
    modes = [
        stat.S_IMODE((config.directory / name).stat().st_mode)
        for name in ("etc", "etc/hosts", ".", "lock")
    ]
    assert modes == [0o755, 0o644, 0o700, 0o600]
    assert after == 0o077
