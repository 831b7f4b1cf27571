"""
The torch of a new environment is the row's, and its GPUs compute: with a made-up torch.
"""

import shutil

import pytest

from deploy.host.__main__ import run_own
from deploy.host.bundle.torch_check import check_version, compare_later
from deploy.host.protocol import FactQuery, HostError
from deploy.host.torch_mark import TorchMark, read_mark
from tests.unit.deploy.bundle.builders import make_lock
from tests.unit.deploy.host.bundle.test_venv import build_request

# A torch whose GPU is off by ERROR in each element of a product; without memory where it is None.
TORCH = """
import sys, types

__version__, __path__ = "9.0+cu130", []
version = types.SimpleNamespace(cuda="13.0")
nn = sys.modules["torch.nn"] = types.ModuleType("torch.nn")
sys.modules["torch.nn.functional"] = types.ModuleType("torch.nn.functional")
backends = types.SimpleNamespace(cuda=types.SimpleNamespace(matmul=types.SimpleNamespace()))
cuda = types.SimpleNamespace(device_count=lambda: GPUS)

class Tensor:
    def __init__(self, value, device="cpu"):
        self.value, self.device = value, device
    def to(self, device):
        if ERROR is None or device in FULL:
            raise RuntimeError(SAYS)
        return Tensor(self.value, device)
    def __matmul__(self, other):
        return Tensor(self.value * other.value + (0 if self.device == "cpu" else ERROR))
    def __sub__(self, other):
        return Tensor(self.value - other.value)
    def cpu(self):
        return self
    def abs(self):
        return Tensor(abs(self.value))
    max = cpu
    def item(self):
        return self.value

def randn(*shape):
    return Tensor(2.0)
"""


def built(
    provisioned,
    tmp_path,
    *,
    error=0.0,
    gpus=1,
    torch="9.0+cu130",
    cuda="13.0",
    has_gpu=True,
    full=(),
    says="CUDA error: out of memory",
    more="",
):
    """
    Return the lock of an environment with the made-up torch, and the request that builds it.
    """
    own = TORCH if cuda else TORCH.replace("9.0+cu130", torch).replace('"13.0"', "None")
    code = f"GPUS, ERROR, FULL, SAYS = {gpus}, {error}, {full}, {says!r}\n{own}{more}".encode()
    lock = make_lock(tmp_path / "wheels", name="torch", version="9.0", code=code)
    shutil.copytree(tmp_path / "wheels", provisioned.layout.wheelhouse)
    if has_gpu:
        show_gpu(provisioned)
    return lock, build_request(lock, torch=torch)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"error": 1e-5, "gpus": 2},
        {"error": None},  # its memory is a slot's
        {"error": 1.0, "has_gpu": False},
    ],
)
def test_an_environment_that_computes_as_the_cpu_does_is_placed(provisioned, tmp_path, changes):
    """
    A host without a GPU is not asked; a GPU without free memory is not compared.
    """
    _, request = built(provisioned, tmp_path, **changes)
    assert provisioned.call(request).built is True


@pytest.mark.parametrize("loaded", ["570.26", "580.65.06"])
def test_no_gpu_is_compared_while_another_driver_is_loaded(provisioned, tmp_path, loaded):
    """
    A driver and an environment may change in one run: the driver is loaded after both.
    """
    _, request = built(provisioned, tmp_path, gpus=0)
    module = provisioned.root / "sys/module/nvidia"
    module.mkdir(parents=True)
    (module / "version").write_text(f"{loaded}\n")
    provisioned.system.installed_driver = "580.65.06"
    if loaded == "570.26":
        assert provisioned.call(request).built is True
    else:
        assert provisioned.refusal(request).kind == "TorchMismatch"


def uncompared(host, venv):
    path = f"/{venv.relative_to(host.layout.root)}"
    return host.call(FactQuery(venvs=(path,))).venvs[path].uncompared


def show_gpu(host):
    (host.root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True, exist_ok=True)
    (host.root / "sys/module/nvidia_uvm").mkdir(parents=True, exist_ok=True)


def test_what_no_gpu_compared_is_compared_once_there_is_one(provisioned, tmp_path):
    """
    The driver is loaded after the environment is built; the files stay as they were recorded.
    """
    lock, request = built(provisioned, tmp_path, has_gpu=False)
    venv = provisioned.layout.venvs / lock.digest
    assert provisioned.call(request).built is True
    assert uncompared(provisioned, venv) is True
    assert provisioned.call(request).built is False  # there is still none
    assert uncompared(provisioned, venv) is True

    show_gpu(provisioned)
    runs = len(provisioned.system.in_sandbox)
    assert provisioned.call(request).built is False
    assert len(provisioned.system.in_sandbox) == runs + 1
    assert uncompared(provisioned, venv) is False
    assert provisioned.call(request).built is False
    assert len(provisioned.system.in_sandbox) == runs + 1


def test_nothing_is_compared_before_nvidia_uvm_is_loaded(provisioned, tmp_path):
    """
    The sandbox loads no modules; the unit of the GPUs does, after the environment is built.
    """
    lock, request = built(provisioned, tmp_path, gpus=0)
    venv = provisioned.layout.venvs / lock.digest
    (provisioned.root / "sys/module/nvidia_uvm").rmdir()
    path = f"/{venv.relative_to(provisioned.layout.root)}"
    assert provisioned.call(FactQuery()).uvm is False
    assert provisioned.call(request).built is True
    assert provisioned.call(FactQuery(venvs=(path,))).venvs[path].uncompared is True
    show_gpu(provisioned)
    assert provisioned.call(FactQuery()).uvm is True
    assert provisioned.refusal(request).why == "torch sees no GPU"


def test_a_result_that_differs_later_is_a_named_error(provisioned, tmp_path):
    """
    Each run compares again until it agrees.
    """
    lock, request = built(provisioned, tmp_path, error=0.5, has_gpu=False)
    assert provisioned.call(request).built is True
    show_gpu(provisioned)
    for _ in range(2):
        error = provisioned.refusal(request)
        assert error.kind == "TorchMismatch"
        assert error.why == "a product on GPU 0 differs from the CPU's by 0.5"
        assert error.what.endswith("it is in place, and releases use it")
    assert uncompared(provisioned, provisioned.layout.venvs / lock.digest) is True


@pytest.mark.parametrize("has_gpu", [True, False])
def test_gpus_without_memory_are_compared_after_the_next_boot(provisioned, tmp_path, has_gpu):
    """
    Slots may fill them for ever: until then nothing is compared, and nothing is due.
    """
    lock, request = built(provisioned, tmp_path, gpus=3, full=("cuda:1",), has_gpu=has_gpu)
    venv = provisioned.layout.venvs / lock.digest
    first = provisioned.call(request)
    if not has_gpu:
        assert (first.full_gpus, uncompared(provisioned, venv)) == ((), True)
        show_gpu(provisioned)
        first = provisioned.call(request)
    runs = len(provisioned.system.in_sandbox)
    for result in (first, provisioned.call(request)):
        assert (result.full_gpus, uncompared(provisioned, venv)) == ((1,), False)
    assert len(provisioned.system.in_sandbox) == runs

    provisioned.system.boot, provisioned.fence = "the-next", None
    assert uncompared(provisioned, venv) is True
    assert provisioned.call(request).full_gpus == (1,)
    assert len(provisioned.system.in_sandbox) == runs + 1

    (venv / ".uncompared").write_text("")  # by an operator, who has freed the memory
    assert uncompared(provisioned, venv) is True
    [code] = venv.rglob("torch*.py")
    code.write_text(code.read_text().replace("'cuda:1',", ""))
    compare_later(provisioned.system, venv)
    assert uncompared(provisioned, venv) is False
    assert not (venv / ".uncompared").exists()


def before_slots(host, capsys):
    status = run_own(host.system, "torch.compare")
    return status, capsys.readouterr().out


def test_a_boot_compares_before_its_slots_fill_the_gpus(provisioned, tmp_path, capsys):
    """
    The unit that slots want finds the mark, compares, and removes it; then it has nothing to do.
    """
    lock, request = built(provisioned, tmp_path, has_gpu=False)
    venv = provisioned.layout.venvs / lock.digest
    provisioned.call(request)
    assert before_slots(provisioned, capsys) == (0, "nothing to compare\n")  # no driver yet
    assert (venv / ".uncompared").exists()
    show_gpu(provisioned)
    runs = len(provisioned.system.in_sandbox)
    assert before_slots(provisioned, capsys) == (0, f"{lock.digest[:12]} compared\n")
    assert not (venv / ".uncompared").exists()
    assert before_slots(provisioned, capsys) == (0, "nothing to compare\n")
    assert len(provisioned.system.in_sandbox) == runs + 1


def test_gpus_that_another_slot_fills_delay_one_start_a_boot(provisioned, tmp_path, capsys):
    lock, request = built(provisioned, tmp_path, full=("cuda:0",), has_gpu=False)
    provisioned.call(request)
    show_gpu(provisioned)
    said = f"{lock.digest[:12]} compared, GPUs without free memory: 0\n"
    assert before_slots(provisioned, capsys) == (0, said)
    assert before_slots(provisioned, capsys) == (0, "nothing to compare\n")
    assert provisioned.call(request).full_gpus == (0,)


def test_what_differed_before_the_slots_is_not_hidden_by_full_gpus(provisioned, tmp_path, capsys):
    """
    The slots start all the same; no run takes the host until a comparison in this or a later boot
    agrees.
    """
    lock, request = built(provisioned, tmp_path, error=0.5, has_gpu=False)
    venv = provisioned.layout.venvs / lock.digest
    provisioned.call(request)
    show_gpu(provisioned)
    status, said = before_slots(provisioned, capsys)
    assert (status, said.endswith("a product on GPU 0 differs from the CPU's by 0.5\n")) == (
        1,
        True,
    )
    assert before_slots(provisioned, capsys) == (0, "nothing to compare\n")  # once a boot

    [code] = venv.rglob("torch*.py")
    text = code.read_text()
    code.write_text(text.replace("FULL, SAYS = 1, 0.5, ()", "FULL, SAYS = 1, 0.5, ('cuda:0',)"))
    assert uncompared(provisioned, venv) is True
    with pytest.raises(HostError) as error:
        compare_later(provisioned.system, venv)
    assert error.value.kind == "TorchMismatch"
    assert "before the slots of this boot started" in error.value.why
    assert uncompared(provisioned, venv) is True

    provisioned.system.boot = "the-next"
    code.write_text(text.replace("0.5", "0.0"))
    assert before_slots(provisioned, capsys)[0] == 0
    assert not (venv / ".uncompared").exists()


@pytest.mark.parametrize(
    ("says", "is_full"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA out of memory. Tried to allocate 32.00 MiB.", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`", False),
    ],
)
def test_a_gpu_without_memory_is_no_mismatch_in_whatever_words(
    provisioned, tmp_path, says, is_full
):
    """
    As torch 2.11 says it on an H100 with 420, 620 and 560 MiB free.
    """
    _, request = built(provisioned, tmp_path, full=("cuda:0",), says=says)
    if is_full:
        assert provisioned.call(request).built is True
    else:
        assert provisioned.refusal(request).why.startswith("RuntimeError: CUDA error: CUBLAS")


@pytest.mark.parametrize("kind", ["directory", "dangling link"])
def test_a_mark_that_is_no_file_is_due(tmp_path, kind):
    if kind == "directory":
        (tmp_path / ".uncompared").mkdir()
    else:
        (tmp_path / ".uncompared").symlink_to("nowhere")
    assert read_mark(tmp_path, "boot-0") == TorchMark(is_due=True)


@pytest.mark.parametrize(
    "text",
    [b"another-boot 1", b"x", b"boot-0 \xff", b"boot-0 a", b"another-boot differed", b"9" * 5000],
)
def test_a_damaged_mark_is_due(tmp_path, text):
    (tmp_path / ".uncompared").write_bytes(text)
    assert read_mark(tmp_path, "boot-0") == TorchMark(is_due=True)


def test_a_row_without_cuda_has_nothing_to_compare(provisioned, tmp_path):
    lock, request = built(provisioned, tmp_path, has_gpu=False, torch="9.0+cpu", cuda=None)
    assert provisioned.call(request).built is True
    assert uncompared(provisioned, provisioned.layout.venvs / lock.digest) is False


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"torch": "9.0+cpu"}, "torch is 9.0+cu130, not 9.0+cpu"),
        ({"torch": "9.1+cu130"}, "torch is 9.0+cu130, not 9.1+cu130"),
        ({"error": 0.5}, "a product on GPU 0 differs from the CPU's by 0.5"),
        ({"gpus": 0}, "torch sees no GPU"),
    ],
)
def test_an_environment_with_another_torch_is_a_named_error(provisioned, tmp_path, changes, why):
    """
    Nothing of it is left to be used.
    """
    lock, request = built(provisioned, tmp_path, **changes)
    error = provisioned.refusal(request)
    assert (error.kind, error.why) == ("TorchMismatch", why)
    assert not (provisioned.layout.venvs / lock.digest).exists()


def test_what_hides_the_gpus_is_named(provisioned, tmp_path):
    """
    Such as DefaultEnvironment= in /etc/systemd/system.conf, which reaches the sandbox.
    """
    more = "import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '7'\n"
    _, request = built(provisioned, tmp_path, gpus=0, more=more)
    why = provisioned.refusal(request).why
    assert why == "torch sees no GPU; CUDA_VISIBLE_DEVICES is '7' in systemd's environment"


@pytest.mark.parametrize(
    ("wanted", "said", "is_good"),
    [
        ("2.13.0+cpu", "2.13.0+cpu\nNone\n", True),
        ("2.13.0+cpu", "a banner\n2.13.0+cpu\nNone\n", True),
        ("1.13.1+cu117", "1.13.1+cu117\n11.7\n", True),
        ("2.13.0+cpu", "2.13.0+cpu\n13.0\n", False),
        ("2.13.0+cu130", "2.13.0+cu130\n13.2\n", False),
        ("2.13.0+cu130", "2.13.0+cu130\nNone\n", False),
        ("2.13.0+cu130", "", False),
    ],
)
def test_version_build_and_cuda_are_compared(wanted, said, is_good):
    if is_good:
        check_version(wanted, said)
    else:
        with pytest.raises(HostError):
            check_version(wanted, said)
