"""
The reader of the trace that the lab test of a hostile wheel relies on.
"""

from tests.lab.exec_trace import _starts

LINES = """\
10 clone(child_stack=NULL, flags=SIGCHLD) = 5 /* 20 in strace's PID NS */
20 setresuid(997, 997, 997) = 0
20 execve("/opt/slipway/bin/uv", ["uv", "pip"], 0x7 /* 9 vars */) = 0
20 clone3({flags=CLONE_VM|CLONE_THREAD} <unfinished ...>
20 <... clone3 resumed> => {parent_tid=[6]}, 88) = 6 /* 21 in strace's PID NS */
21 vfork( <unfinished ...>
22 execve("/v/bin/python", ["python"], 0x7 /* 9 vars */ <unfinished ...>
21 <... vfork resumed>) = 7 /* 22 in strace's PID NS */
22 <... execve resumed>) = 0
10 execve("/usr/bin/nothing", ["nothing"], 0x7) = -1 ENOENT (No such file or directory)
10 execve("/v/bin/evil", ["evil"], 0x7 /* 9 vars */) = 0
20 +++ exited with 0 +++
"""


def test_a_process_has_the_user_of_its_ancestor_until_it_changes():
    """
    Also a child of vfork, which starts its program before the call that made it returns.
    """
    assert list(_starts(LINES.splitlines())) == [
        (997, "/opt/slipway/bin/uv", '["uv", "pip"]'),
        (997, "/v/bin/python", '["python"]'),
        (0, "/v/bin/evil", '["evil"]'),
    ]
