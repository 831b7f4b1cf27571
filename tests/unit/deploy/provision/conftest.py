import pytest

from deploy.provision import probe
from tests.local_host import BOOT

_AT_ROOT = "from deploy.host import layout; layout.Layout.__init__.__defaults__ = ({root!r},)\n"


@pytest.fixture
def host_root(tmp_path, monkeypatch):
    """
    The root of the host, for verbs that this process feeds to its program: this machine has none.
    """
    root = tmp_path / "host"
    boot_id = root / "proc/sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text(f"{BOOT}\n")
    before, main = probe._LOADER.split("from deploy.host.__main__")
    at_root = _AT_ROOT.format(root=str(root))
    monkeypatch.setattr(probe, "_LOADER", f"{before}{at_root}from deploy.host.__main__{main}")
    return root
