"""
The look, at this machine and at directories made for it.
"""

import hashlib
import json
import os
import socket
import threading
import time

from deploy.host import facts as look


def test_every_answer_fits_what_is_read_here():
    """
    The look's answer is a `Seen`, key by key.
    """
    from deploy.provision.seen import Question, Seen

    question = Question(paths={"/etc/hostname": ""}, port=1, room=("/no/such/place",))
    answer = look.look(json.loads(question.model_dump_json()))
    assert Seen.model_validate(answer).room["/no/such/place"] > 0


def test_kinds_are_told_apart(tmp_path):
    """
    A link is a link, wherever it leads.
    """
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "fifo")
    kinds = {
        name: look.path(tmp_path / name, "", False)["type"] for name in ("file", "link", "fifo")
    }
    assert kinds == {"file": "file", "link": "link", "fifo": "other"}
    assert look.path(tmp_path, "", False)["type"] == "directory"
    assert look.path(tmp_path / "link", "", False)["target"] == "/nowhere"
    assert look.path(tmp_path / "file" / "below", "", False) is None


def test_the_text_of_a_secret_stays_there(tmp_path):
    """
    A file that differs brings its text, unless it is a secret.
    """
    path = tmp_path / "environment"
    path.write_text("TOKEN=x")
    assert look.path(path, "0" * 64, False)["text"] == "TOKEN=x"
    assert "text" not in look.path(path, "0" * 64, True)
    assert "text" not in look.path(path, hashlib.sha256(b"TOKEN=x").hexdigest(), False)


def test_who_listens_is_named():
    """
    The program behind a listening port is found, and nobody is found behind a silent one.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert look.listeners(port) == [
            {"program": look.first_line("/proc/self/comm"), "pid": os.getpid()}
        ]
    assert look.listeners(port) == []


def test_the_loaded_configuration_is_what_haproxy_says(tmp_path):
    """
    The description line of `show info` is read from the socket; no socket is None.
    """
    address = str(tmp_path / "s")
    assert look.haproxy(address) is None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()

        def answer():
            link, _ = server.accept()
            with link:
                link.recv(100)
                link.sendall(b"Name: HAProxy\nnode: n1\ndescription: slipway abc\nMaxconn: 1\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert look.haproxy(address) == "slipway abc"
        thread.join()


def test_a_lease_counts_while_it_lasts(tmp_path):
    """
    A lease that has ended, was given back, or is of another boot is none.
    """
    path = tmp_path / "lease.json"
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    boot = look.first_line("/proc/sys/kernel/random/boot_id")
    good = {
        "owner": "ann",
        "release": "r1",
        "fence": 3,
        "expires_at": 0.0,
        "expires_steady_s": now_s + 30,
        "boot_id": boot,
    }

    def read(**changes):
        path.write_text(json.dumps(good | changes))
        return look.lease(str(path))

    assert read()["owner"] == "ann"
    assert 29 < read()["left_s"] <= 30
    assert read(owner=None) is None
    assert read(expires_steady_s=now_s - 1) is None
    assert read(boot_id="another") is None
    path.write_text("{")
    assert look.lease(str(path)) is None
    assert look.lease(str(tmp_path / "none")) is None


def test_unknown_packages_and_users_are_none():
    """
    What is not installed is None, next to what is.
    """
    found = look.packages(["no-such-package-at-all"])
    assert found == {"no-such-package-at-all": None}
    assert look.user("no-such-user") is None
    assert look.user("root")["group"] == "root"


def test_room_is_that_of_the_nearest_directory(tmp_path):
    """
    A directory that is not there yet has the room of where it will be.
    """
    free, there = look.room(tmp_path / "a" / "b"), look.room(tmp_path)
    assert abs(free - there) < 2**30
