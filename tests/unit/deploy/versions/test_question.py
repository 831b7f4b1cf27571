import pytest

from deploy.errors import UsageError
from deploy.versions.catalog import load_catalog
from deploy.versions.question import parse_facts, parse_wish

NONE = {"torch": "", "cuda": "", "python": ""}
UNKNOWN = {"driver": "", "gpu": "", "os": ""}


def wish(**flags):
    return parse_wish(load_catalog(), **NONE | flags)


def facts(**flags):
    return parse_facts(load_catalog(), **UNKNOWN | flags)


@pytest.mark.parametrize(
    ("flags", "torch", "cuda", "python"),
    [
        ({"torch": "2.3"}, "2.3", None, None),
        ({"torch": "2.3.1"}, "2.3", None, None),
        ({"torch": "2.3.1+cu118"}, "2.3", "11.8", None),
        ({"torch": "2.13+cpu"}, "2.13", "cpu", None),
        ({"torch": "2.3+cu121", "cuda": "12.1"}, "2.3", "12.1", None),
        ({"cuda": "12.8"}, None, "12.8", None),
        ({"cuda": "12.8.1"}, None, "12.8", None),
        ({"cuda": "cu128"}, None, "12.8", None),
        ({"cuda": "CPU"}, None, "cpu", None),
        ({"python": "3.11"}, None, None, "3.11"),
        ({"python": "python3.11.2"}, None, None, "3.11"),
        ({}, None, None, None),
    ],
)
def test_a_wish_is_read_as_people_write_it(flags, torch, cuda, python):
    found = wish(**flags)
    assert (found.torch, found.cuda, found.python) == (torch, cuda, python)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("h100", ["H100"]),
        ("NVIDIA H100 80GB HBM3", ["H100"]),
        ("a100-sxm4-40gb", ["A100"]),
        ("Tesla T4", ["T4"]),
        ("NVIDIA GeForce RTX 4090", ["RTX-4090"]),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", ["RTX-4090"]),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", ["RTX-PRO-6000"]),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", ["RTX-PRO-6000"]),
        ("l40s", ["L40S"]),
        ("l4", ["L4"]),
        ("sm_90", ["9.0"]),
        ("9.0", ["9.0"]),
        ("H100, A100", ["H100", "A100"]),
    ],
)
def test_a_gpu_is_read_as_people_and_nvidia_smi_write_it(text, names):
    assert [gpu.name for gpu in facts(gpu=text).gpus] == names


@pytest.mark.parametrize(
    "text", ["debian12", "Debian 12", "debian-12", "bookworm"], ids=lambda t: t.replace(" ", "_")
)
def test_a_distribution_has_several_names(text):
    assert facts(os=text).distribution.title == "Debian 12"
    assert facts(os="ubuntu 24.04").distribution.title == "Ubuntu 24.04"


def test_a_branch_alone_stands_for_its_newest_known_release():
    assert facts(driver="535").driver == "535.309.01"
    assert facts(driver="R580").driver == "580.178.04"


BAD = [
    ({"torch": "two"}, "torch", "2.15"),
    ({"torch": "2.3.7"}, "torch", "--torch 2.3"),
    ({"torch": "2.3.0"}, "torch", "--torch 2.3"),
    ({"torch": "0.4"}, "torch", "--torch 1.13"),
    ({"torch": "2.99"}, "torch", "--torch 2.15"),
    ({"torch": "9" * 5000 + ".1"}, "torch", "--torch"),
    ({"torch": "2.3+rocm6"}, "torch", "--cuda"),
    ({"torch": "2.3+cu121", "cuda": "11.8"}, "cuda", "one of the two"),
    ({"cuda": "12"}, "cuda", "--cuda 12.8"),
    ({"cuda": "14.0"}, "cuda", "--cuda 13.5"),
    ({"cuda": "12.7"}, "cuda", "--cuda 12.6"),
    ({"cuda": "rocm"}, "cuda", "--cuda 12.8"),
    ({"python": "2.7"}, "python", "--python 3.12"),
    ({"python": "3"}, "python", "--python 3.12"),
    ({"python": "3.99"}, "python", "--python 3.15"),
    ({"python": "3.6"}, "python", "--python 3.7"),
    ({"driver": "newest"}, "driver", "--driver 580.95.05"),
    ({"driver": "525"}, "driver", "--driver 580.95.05"),  # no release of it is known
    ({"driver": "58.95.05"}, "driver", "--driver 580.95.05"),
    ({"driver": "580.95.05.1"}, "driver", "--driver 580.95.05"),
    ({"driver": "٥٨٠"}, "driver", "--driver 580.95.05"),
    ({"driver": "580\n"}, "driver", "--driver 580.95.05"),
    ({"gpu": "h100,"}, "gpu", "compute capability"),
    ({"gpu": "mi300x"}, "gpu", "compute capability"),
    ({"gpu": "h100x"}, "gpu", "--gpu h100, or its compute capability"),
    ({"gpu": "5090"}, "gpu", "--gpu rtx-5090, or its compute capability"),
    ({"gpu": "3.5"}, "gpu", "--gpu with its compute capability"),
    ({"gpu": "t1000"}, "gpu", "--gpu with its compute capability"),
    ({"gpu": "p1000"}, "gpu", "--gpu with its compute capability"),
    ({"gpu": "rtx 6000 ada"}, "gpu", "--gpu with its compute capability"),
    ({"gpu": "sm_90a"}, "gpu", "--gpu with its compute capability"),
    ({"gpu": "99.9"}, "gpu", "compute capability"),
    ({"gpu": "\x1b[31mh100\u202e"}, "gpu", "--gpu"),
    ({"os": "centos7"}, "os", "--os debian12"),
    ({"os": "ubuntu2004"}, "os", "--os ubuntu2"),
    ({"os": "!"}, "os", "--os debian12"),
]


@pytest.mark.parametrize(("flags", "flag", "fix"), BAD)
def test_a_bad_question_is_one_error_that_names_flag_and_remedy(flags, flag, fix):
    """
    Words of the question are shown as visible text and cut.
    """
    ask = wish if flags.keys() & NONE.keys() else facts
    with pytest.raises(UsageError) as caught:
        ask(**flags)
    error = caught.value
    assert error.what.startswith(f"--{flag} ")
    assert error.why
    assert fix in error.fix
    assert "\x1b" not in str(error)
    assert "\u202e" not in str(error)
    assert len(error.what) < 200
