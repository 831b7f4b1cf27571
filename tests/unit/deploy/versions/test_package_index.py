import io
import json
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from pip._internal.models.index import PyPI

from deploy.errors import CommandFailed
from deploy.versions import package_index
from deploy.versions.package_index import Index, read_torch

METADATA = """\
Metadata-Version: 2.1
Name: torch
Requires-Dist: nvidia-cuda-runtime-cu12==12.8.90; platform_system == "Linux"
Requires-Dist: triton==3.4.0; platform_system == "Linux" and python_version < "3.13"
Requires-Dist: this is not a requirement
"""


def wheel(name, **more):
    return {"filename": name, "url": f"../../files/{name}", "size": 3, "yanked": False} | more


FILES = [
    wheel("torch-1.12.1-cp310-cp310-manylinux1_x86_64.whl"),
    wheel("torch-2.8.0-cp311-cp311-manylinux_2_28_x86_64.whl"),
    wheel("torch-2.8.0-cp313-cp313-manylinux_2_28_x86_64.whl"),
    wheel("torch-2.8.0-cp313-cp313t-manylinux_2_28_x86_64.whl"),  # free-threaded
    wheel("torch-2.8.0-cp312-cp312-manylinux_2_28_aarch64.whl"),
    wheel("torch-2.8.0-cp312-cp312-win_amd64.whl"),
    wheel("torch-2.8.0-cp314-cp314-manylinux_2_28_x86_64.whl", yanked="broken"),
    wheel("torch-2.9.0rc1-cp312-cp312-manylinux_2_28_x86_64.whl"),
    wheel("torch-2.10.0-3-cp312-cp312-manylinux_2_28_x86_64.whl"),  # with a build tag
    wheel("torch-2.8.0.post1-cp311-cp311-manylinux_2_28_x86_64.whl"),
    wheel("torch-2.9.0-cp311-cp311-macosx_11_0_arm64.whl"),
    wheel("not-a-wheel.whl"),
    wheel("torch-2.8.0.tar.gz"),
]


@contextmanager
def server(pages):
    """
    Yield the address of a server on loopback with *pages*, and the headers it was sent.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(dict(self.headers))
            content = pages.get(self.path)
            if content is None:
                return self.send_error(404)
            status = 200
            if (part := self.headers.get("Range")) and content:
                first, last = map(int, part.removeprefix("bytes=").split("-"))
                content, status = content[first : last + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return self.wfile.write(content)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{http.server_port}", asked
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def pages(files=FILES, metadata=METADATA):
    found = {"/simple/torch/": json.dumps({"files": files}).encode()}
    for file in files:
        found[f"/files/{file['filename']}.metadata"] = metadata.encode()
    return found


def read(found, user=""):
    with server(found) as (place, asked):
        return read_torch(Index(f"http://{user}{place}/simple"), first="1.13"), asked


def test_the_newest_release_of_each_minor_is_read():
    """
    Linux wheels of CPython that are neither yanked, nor pre-releases, nor free-threaded.
    """
    result, _ = read(pages())
    assert result["torch"] == [
        {
            "minor": "2.8",
            "version": "2.8.0",
            "patches": ["2.8.0"],
            "pythons": ["3.11", "3.13"],
            "triton": ["3.11"],
            "glibc": "2.28",
            "machines": ["aarch64", "x86_64"],
            "cuda": "12.8.90",
            "build": "cu128",
        },
        {
            "minor": "2.10",
            "version": "2.10.0",
            "patches": ["2.10.0"],
            "pythons": ["3.12"],
            "triton": ["3.12"],
            "glibc": "2.28",
            "machines": ["x86_64"],
            "cuda": "12.8.90",
            "build": "cu128",
        },
    ]


def test_metadata_that_is_not_beside_the_wheel_is_read_out_of_it(monkeypatch):
    """
    A part of the archive is asked for, not the whole: wheels of torch have 900 MB.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("torch/lib/large.so", bytes(300_000))
        file.writestr("torch-2.8.0.dist-info/METADATA", METADATA)
    name = "torch-2.8.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    content = archive.getvalue()
    found = pages([wheel(name, size=len(content))])
    del found[f"/files/{name}.metadata"]
    found[f"/files/{name}"] = content
    monkeypatch.setattr(package_index, "_BLOCK_BYTES", 4096)
    result, asked = read(found)
    assert result["torch"][0]["build"] == "cu128"
    assert sum("Range" in headers for headers in asked) < 5


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({}, "404"),
        ({"/simple/torch/": b"<html>"}, "PEP 691"),
        ({"/simple/torch/": b"[]"}, "PEP 691"),
        ({"/simple/torch/": b'{"files": [1]}'}, "PEP 691"),
        ({"/simple/torch/": b'{"files": [{"filename": "torch-2.8.0-cp311-cp311-'
          b'manylinux_2_28_x86_64.whl"}]}'}, "PEP 691"),
        ({"/simple/torch/": b"[" * 100_000}, "PEP 691"),
        (pages(metadata="Requires-Dist: numpy\n"), "no CUDA runtime"),
        (pages(metadata="Requires-Dist: cuda-toolkit==13.*\n"), "no CUDA runtime"),
        (pages() | {"/files/torch-2.8.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata": None},
         "404"),
    ],
)  # fmt: skip
def test_an_index_that_makes_no_sense_is_one_error(found, why):
    """
    What, why, fix; no traceback.
    """
    with pytest.raises(CommandFailed) as caught:
        read(found)
    assert why in caught.value.why
    assert "pip config list" in caught.value.fix


def test_the_index_is_that_of_pip():
    """
    The environment goes before the files; another index of the list is not taken for it.
    """

    def configured(*lines):
        return Index.of_pip(lambda *_: "\n".join(lines))

    assert configured() == Index(PyPI.simple_url)
    both = ("global.index-url='https://a/simple/'", "global.extra-index-url='https://b/simple'")
    assert configured(*both) == Index("https://a/simple")
    more = (*both, ":env:.index-url='https://c/simple'", "global.cert='/ca.pem'")
    assert configured(*more) == Index("https://c/simple", "/ca.pem")


def test_a_missing_certificate_file_is_an_error_of_the_index():
    with pytest.raises(CommandFailed):
        Index("https://127.0.0.1:1", "/nonexistent/ca.pem").get("https://127.0.0.1:1/simple/torch/")


def test_credentials_of_the_index_are_sent_and_never_shown():
    result, asked = read(pages(), user="me:s%40cret@")
    assert result["torch"]
    assert asked[0]["Authorization"] == "Basic bWU6c0BjcmV0"
    with pytest.raises(CommandFailed) as caught:
        read({}, user="me:s%40cret@")
    assert "cret" not in str(caught.value)
