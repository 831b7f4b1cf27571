"""
Users as the files of /etc have them.
"""

import pytest

from deploy.host.accounts import read_user
from deploy.host.protocol import UserFacts

PASSWD = "root:x:0:0:root:/root:/bin/bash\nslipway:x:999:998::/nonexistent:/usr/sbin/nologin\n"
GROUP = "root:x:0:\nslipway:x:998:\nadm:x:4:syslog,ann\n"
SHADOW = "root:*:20000:0:99999:7:::\nslipway:!:20000::::::\n"
GOOD = UserFacts(
    group="slipway", shell="/usr/sbin/nologin", home="/nonexistent", groups=(), is_locked=True
)


@pytest.fixture
def user(tmp_path):
    """
    Return a function that reads `slipway`, with one text replaced in one of the files.
    """
    texts = {"passwd": PASSWD, "group": GROUP, "shadow": SHADOW}

    def read(file="passwd", old="", new=""):
        for name, text in texts.items():
            (tmp_path / name).write_text(text.replace(old, new) if name == file else text)
        return read_user(tmp_path, "slipway")

    return read


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("passwd", ":998:", ":4:", {"group": "adm"}),
        ("passwd", ":998:", ":77:", {"group": "77"}),
        ("passwd", "/usr/sbin/nologin", "/bin/bash", {"shell": "/bin/bash"}),
        ("passwd", "/nonexistent", "/home/eve", {"home": "/home/eve"}),
        ("group", "syslog,ann", "syslog,slipway", {"groups": ("adm",)}),
        ("group", "syslog,ann", "slipway2", {}),
        ("shadow", "slipway:!:", "slipway:$y$j9T$abc:", {"is_locked": False}),
        ("shadow", "slipway:!:", "slipway::", {"is_locked": False}),
        ("shadow", "slipway:!:", "slipway:*:", {}),
        ("shadow", "slipway:!:", "other:!:", {}),
        ("passwd", "slipway:x:", "slipway::", {"is_locked": False}),
    ],
)
def test_every_attribute_is_read(user, file, old, new, changes):
    """
    A user without a row in shadow has no password that opens it; an empty password does.
    """
    wanted = {**vars(GOOD), **changes}
    assert vars(user(file, old, new)) == wanted


def test_an_unknown_user_is_none(user):
    assert user("passwd", "slipway:x", "slipway-blue:x") is None
    assert user() == GOOD
