"""
What `inv bench.provision` gives its peers to do, its slow links, and its table.
"""

import ast
import asyncio
import contextlib
import json
import socket
import sys
import time
from pathlib import Path

import pytest

from deploy.bench.provision.peer_work import peer_work
from deploy.bench.provision.report import OURS, ProvisionTime, ProvisionTimes
from deploy.bench.provision.times import _known_hosts
from deploy.bench.provision.tools import TOOLS, tools_named
from deploy.cli.grid import draw
from deploy.errors import UsageError
from deploy.provision.apt_packages import Packages
from deploy.provision.resources import (
    Absent,
    Directory,
    File,
    Upload,
    Venv,
    WheelFile,
)
from deploy.provision.unit_resources import UnitsLoaded
from deploy.provision.user_resources import User

ROOT = Path(__file__).parents[4]
WHEEL = WheelFile(
    file="a-1-py3-none-any.whl", sha256="0" * 64, size=3, source="/cache/a.whl", unpacked=9
)
WANTED = (
    Packages(names=("haproxy", "socat")),
    User(user="slipway"),
    Directory(path="/opt/slipway", mode="0750", group="slipway"),
    File(path="/etc/slipway/host.json", content=b'{"it\'s": "a \\"text\\""}\n', mode="0640"),
    Absent(path="/etc/slipway/tls"),
    Upload(
        path="/opt/slipway/bin/uv-1", source="/here/uv", sha256="0" * 64, size=9, link="/opt/uv"
    ),
    Venv(digest="1" * 64, text="a==1", python="3.11", wheels=(WHEEL,)),
    UnitsLoaded(units=("a.service",)),
)


@pytest.fixture
def work():
    return peer_work(WANTED, "files")


def modules(work):
    (play,) = json.loads(work.playbook)
    return [
        (key.removeprefix("ansible.builtin."), task[key])
        for task in play["tasks"]
        for key in task
        if key.startswith("ansible.builtin.")
    ]


def operations(work):
    """
    Return {operation: its arguments} of each call in the deploy.
    """
    calls = [node.value for node in ast.parse(work.deploy).body if isinstance(node, ast.Expr)]
    return [
        (ast.unparse(call.func), {k.arg: ast.literal_eval(k.value) for k in call.keywords})
        for call in calls
    ]


def test_a_playbook_has_a_task_for_each_resource(work):
    assert [name for name, _ in modules(work)] == [
        "raw", "apt", "group", "user", "file", "copy", "file", "copy", "file", "copy", "command",
    ]  # fmt: skip
    assert work.left_out == ("systemd",)


def test_a_deploy_of_pyinfra_does_the_same(work):
    assert [name for name, _ in operations(work)] == [
        "server.shell", "apt.packages", "server.group", "server.user", "files.directory",
        "files.put", "files.file", "files.put", "files.link", "files.put", "server.shell",
    ]  # fmt: skip


def test_modes_and_owners_are_those_of_the_resource(work):
    directory = next(args for name, args in modules(work) if name == "file")
    assert (directory["group"], directory["mode"]) == ("slipway", "0750")
    made = next(args for name, args in operations(work) if name == "files.directory")
    assert (made["group"], made["mode"]) == ("slipway", "750")


def test_files_are_copied_from_what_is_written(work):
    copied = [args["src"] for name, args in modules(work) if name == "copy"]
    assert copied == [f"files/{name}" for name in work.files]
    assert list(work.files.values()) == [WANTED[3].content, "/here/uv", "/cache/a.whl"]


@pytest.mark.parametrize("name", ["server", "apt", "files"])
def test_pyinfra_has_these_operations(work, name):
    """
    The deploy is text until pyinfra reads it; every argument must be one of its operation.
    """
    import importlib
    import inspect

    module = importlib.import_module(f"pyinfra.operations.{name}")
    for function, arguments in operations(work):
        owner, _, operation = function.partition(".")
        if owner == name:
            known = inspect.signature(getattr(module, operation)._inner).parameters
            assert set(arguments) - {"name"} <= set(known), function


def test_host_keys_stand_under_the_address_and_port_that_is_reached():
    text = "10.0.0.11 ssh-ed25519 AAAA\n10.0.0.12 ssh-ed25519 BBBB\n"
    addresses = {"n1": "10.0.0.11"}
    direct = _known_hosts(text, addresses, {"n1": ("10.0.0.11", 22)})
    slow = _known_hosts(text, addresses, {"n1": ("127.0.0.1", 4022)})
    assert direct == "10.0.0.11 ssh-ed25519 AAAA\n"
    assert slow == "[127.0.0.1]:4022 ssh-ed25519 AAAA\n"


def test_tools_are_named_in_any_case():
    assert tools_named("") == TOOLS
    assert tools_named("ANSIBLE, slipway") == ("Ansible", "slipway")
    with pytest.raises(UsageError, match="chef"):
        tools_named("slipway,chef")


def run(tool, wall_s, *, is_first=False, link="LAN"):
    return ProvisionTime(tool, link, is_first, wall_s, cpu_s=1.0, commands=2.0)


def test_ratios_are_those_of_medians_of_the_same_link_and_run():
    times = ProvisionTimes(
        runs=(
            run(OURS, 2.0), run(OURS, 4.0), run(OURS, 3.0), run(OURS, 100.0, is_first=True),
            run("Ansible", 30.0), run("Ansible", 60.0, link="25 ms each way"),
        ),
        hosts=4, resources=9, left_out=("systemd",), unlike={"Ansible": ("user slipway",)},
    )  # fmt: skip
    found = {(line["link"], line["run"], line["tool"]): line for line in times.medians()}
    assert found["LAN", "again", "Ansible"]["ratio"] == 10.0
    assert found["LAN", "again", OURS]["wall_s"] == 3.0
    assert found["25 ms each way", "again", "Ansible"]["ratio"] is None
    text = draw(times.table(), is_terminal=False, encoding="ascii")
    assert "Ansible: slipway would also change user slipway" in text
    assert "its peers 8: they have no module for systemd" in text


def test_a_slow_link_delays_both_ways_and_loses_nothing():
    """
    Measured against a server of this test; only the lower bound of the delay is asserted.
    """
    asyncio.run(_through_a_slow_link())


async def _through_a_slow_link():
    async def echo(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    code = (
        "import asyncio, deploy.bench.provision.slow_link as link;"
        f"asyncio.run(link.serve(0.05, ['127.0.0.1'], {port}))"
    )
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    proxy = await asyncio.create_subprocess_exec(sys.executable, "-c", code, **pipes, cwd=ROOT)
    try:
        listening = int(await proxy.stdout.readline())
        reader, writer = await asyncio.open_connection("127.0.0.1", listening)
        began_s, sent = time.monotonic(), bytes(range(256)) * 1024
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
        assert time.monotonic() - began_s > 0.2  # handshake 0.1, then 0.05 each way
        writer.close()
    finally:
        proxy.stdin.close()
        await asyncio.wait_for(proxy.wait(), 60)
        server.close()
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listening), 1):
        raise AssertionError("the link listens although its standard input has ended")
