"""
Whether a configuration file is as its package installed it, by the records of dpkg.
"""

import hashlib

import pytest

from deploy.host.conffiles import untouched

PATH = "/etc/haproxy/haproxy.cfg"
SHIPPED = "global\n    log /dev/log local0\n"


def record(text=SHIPPED, path=PATH, more=""):
    digest = hashlib.md5(text.encode()).hexdigest()
    return (
        f"Package: haproxy\nConffiles:\n /etc/default/haproxy {'0' * 32}\n {path} {digest}{more}\n"
    )


@pytest.fixture
def root(tmp_path):
    """
    Return a function that makes the root of a host.
    """

    def make(status, text):
        for path, content in (("var/lib/dpkg/status", status), (PATH.lstrip("/"), text)):
            if content is not None:
                (tmp_path / path).parent.mkdir(parents=True)
                (tmp_path / path).write_text(content)
        return str(tmp_path)

    return make


@pytest.mark.parametrize("status", [record(), record(more=" obsolete")])
def test_the_file_of_the_package_is_untouched(root, status):
    """
    Also one that the newest version of the package does not have.
    """
    assert untouched(root(status, SHIPPED), (PATH,)) == (PATH,)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (record(), SHIPPED + "# mine\n"),
        (record(), None),
        (record(path="/etc/haproxy/haproxyxcfg"), SHIPPED),
        (record(more="0"), SHIPPED),
        ("Package: haproxy\n", SHIPPED),
        (None, SHIPPED),
    ],
)
def test_any_other_file_is_not(root, status, text):
    """
    Changed, gone, another path, another digest, no record, no dpkg.
    """
    assert untouched(root(status, text), (PATH,)) == ()


def test_a_link_to_the_same_text_is_not(root, tmp_path):
    """
    Somebody placed it.
    """
    place = root(record(), None)
    (tmp_path / "shipped").write_text(SHIPPED)
    (tmp_path / "etc/haproxy").mkdir(parents=True)
    (tmp_path / PATH.lstrip("/")).symlink_to(tmp_path / "shipped")
    assert untouched(place, (PATH,)) == ()
