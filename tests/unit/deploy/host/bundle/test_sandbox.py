"""
The properties of the sandbox of builds, with and without the GPUs of the host.
"""

from deploy.host.bundle.sandbox import command

# Recorded on an H100 with driver 580.159.04: libcuda's cuInit fails with error 304 where one of
# these is refused, and needs no other call of sockets.
CUDA_NEEDS = {"socket", "bind", "listen"}


def properties(**changes):
    argv = command(["true"], timeout_s=1.0, **changes)
    return [word.removeprefix("--property=") for word in argv if word.startswith("--property=")]


def denied(**changes):
    filters = [p for p in properties(**changes) if p.startswith("SystemCallFilter=~")]
    return {call for one in filters for call in one.removeprefix("SystemCallFilter=~").split()}


def test_cuda_starts_in_the_sandbox():
    assert not denied(sees_gpus=True) & CUDA_NEEDS
    assert "RestrictAddressFamilies=AF_UNIX" in properties(sees_gpus=True)


def test_nothing_in_it_reaches_a_socket_of_the_host():
    """
    Where CUDA listens on a socket, that is one of a network namespace of its own.
    """
    assert denied() >= {"socket", "connect", "bind", "listen"}
    assert denied(sees_gpus=True) >= {"connect", "sendto", "sendmsg", "sendmmsg"}
    for sees_gpus in (False, True):
        assert "PrivateNetwork=yes" in properties(sees_gpus=sees_gpus)
        assert "io_uring_setup" in denied(sees_gpus=sees_gpus)
