import os

import pytest
import torch

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter.  It is asked for when a kernel is defined, so before any
    # test can import one.
    os.environ["TRITON_INTERPRET"] = "1"
    from tests.unit.runtime.interpreted_kernels import patch_language_once

    patch_language_once()

from deploy.lab.models.build import build
from tests.unit.runtime.serving import Runtime


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def lab_model(tmp_path_factory):
    """
    The directory of the lab's model good-v1, whose training takes seconds.
    """
    folder = tmp_path_factory.mktemp("lab") / "good-v1"
    build("good-v1", folder)
    return folder


@pytest.fixture
async def runtime():
    """
    A ready runtime whose engine accepts only announced requests; afterwards it must be idle.
    """
    runtime = Runtime()
    yield runtime
    runtime.engine.done()
    assert runtime.engine.running == {}
