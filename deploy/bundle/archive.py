"""
Code, configuration, golden prompts and lock as one archive, the same bytes each time.  Pure.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

from deploy.bundle.manifest import File
from deploy.host.bundle.archive import header, padding, trailer
from deploy.host.bundle.manifest import Blob

MODE: Final = "0644"


def listed(contents: Mapping[str, bytes]) -> tuple[File, ...]:
    """
    Return what the manifest says of *contents*, sorted by path.
    """
    return tuple(
        File(path=path, sha256=hashlib.sha256(data).hexdigest(), size=len(data), mode=MODE)
        for path, data in sorted(contents.items())
    )


def archived(contents: Mapping[str, bytes]) -> bytes:
    """
    Return the archive of *contents*, in the order of `listed`.
    """
    blobs = [Blob(file.path, file.sha256, file.size, file.mode) for file in listed(contents)]
    parts = [header(blob) + contents[blob.path] + padding(blob.size) for blob in blobs]
    return b"".join(parts) + trailer(blobs)
