"""
Compares each template with its golden file, and gives each golden file to the tool that reads it.

After an intended change: SLIPWAY_GOLDEN=write pytest tests/unit/deploy/provision/test_templates.py
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.host import layout
from deploy.inventory.schema import AptSource, Mirrors, Tls
from deploy.inventory.schema.gpu import GpuSection
from deploy.provision import base, data_disk, deadman, haproxy, host_program, runtime_unit
from deploy.provision.apt_sources import AptSources, OsRelease
from deploy.provision.concerns import plan_resources
from deploy.provision.distributions import distributions
from deploy.provision.driver.gpu_state import unit_text
from deploy.provision.resources import File
from deploy.templating import TEMPLATES
from runtime.contract.engine_options import OLDEST_VERSION, OPTIONS
from runtime.contract.errors import ConfigError
from runtime.server.config import load_config
from tests.unit.deploy.certificates.builders import NOW, make_authority
from tests.unit.deploy.provision.builders import DEBIAN, TOKEN, make_spec

GOLDEN = Path(__file__).parents[3] / "golden"
MIRRORS = Mirrors(
    apt=(
        AptSource(
            uris=("http://mirror.example.com/debian",),
            suites=("bookworm", "bookworm-updates"),
            components=("main",),
            signed_by="/usr/share/keyrings/debian-archive-keyring.gpg",
        ),
        AptSource(
            uris=("https://[2001:db8::1]:8443/debian-security",),
            suites=("bookworm-security",),
            components=("main", "non-free-firmware"),
        ),
    ),
    apt_proxy="http://p:1",
    no_proxy=(".example.com", "10.1.2.3"),
    ca_bundle="/etc/mirrors.pem",
)

GPU = GpuSection.model_validate(
    {
        "persistence": True,
        "power_limit_w": 400,
        "clocks": {"min_mhz": 1200, "max_mhz": 1800},
        "ecc": True,
        "mig": False,
    }
)

TLS = Tls(kind="internal", authority="/ca")
ACME = Tls(kind="acme")

MEMORY = {
    "weights": "int8",
    "kv": "fp8",
    "memory_fraction": 0.45,
    "context_tokens": 32768,
    "page_tokens": 32,
    "step_tokens": 4096,
    "gpus": 2,
}


def sources(mirrors, host):
    return AptSources(sources=base.archives(mirrors)).text(host)


def own_suites(distribution):
    """
    Return a mirror with the suites of whatever release of *distribution* a host has.
    """
    uris = (f"https://mirror.example.com/{distribution}",)
    main = AptSource(uris=uris, distribution=distribution)
    security = AptSource(uris=uris, distribution=distribution, archive="security")
    return Mirrors(apt=(main, security) if distribution == "debian" else (main,))


def texts():
    cpu, gpu = make_spec(mirrors=MIRRORS), make_spec(row="torch-2.3-cu121", device="cuda")
    args = ("--stream-interval=4",)
    vllm = make_spec(row="torch-2.3-cu121", device="cuda", engine="vllm", vllm_args=args)
    memory = make_spec(row="torch-2.3-cu121", device="cuda", precision="bf16", **MEMORY)
    gpus = make_spec(row="torch-2.3-cu121", device="cuda", gpus=2)
    placed = {r.path: r.content.decode() for r in plan_resources(cpu).placed if isinstance(r, File)}
    return {
        "haproxy.cfg": haproxy.config(cpu),
        "haproxy-tls.cfg": haproxy.config(make_spec(tls=TLS)),
        "haproxy-acme.cfg": haproxy.config(make_spec(tls=ACME)),
        "slipway-runtime@.service": runtime_unit.unit(cpu),
        "slipway-runtime-gpu@.service": runtime_unit.unit(gpu),
        "slipway-runtime-gpus@.service": runtime_unit.unit(gpus),
        "slipway-runtime-vllm@.service": runtime_unit.unit(vllm),
        "slipway-gpu.service": unit_text(GPU),
        "slipway-torch.service": runtime_unit.torch_unit(),
        "slipway-slot.mount": runtime_unit.mount(cpu, "blue"),
        "slipway-data.mount": data_disk.mount(layout.OPT, "/data/slipway/opt"),
        **{path.rpartition("/")[2]: text for path, text in deadman.units().items()},
        "slipway.slice": placed[runtime_unit.SLICE_FILE],
        "slipway.tmpfiles": placed["/etc/tmpfiles.d/slipway.conf"],
        "runtime.yml": runtime_unit.config(cpu),
        "runtime-vllm.yml": runtime_unit.config(vllm),
        "runtime-memory.yml": runtime_unit.config(memory),
        "environment": runtime_unit.environment(cpu),
        "host.json": host_program.host_config(cpu),
        "90slipway.apt": placed["/etc/apt/apt.conf.d/90slipway"],
        "slipway.sources": sources(MIRRORS, DEBIAN),
        **{
            f"slipway-{codename}.sources": sources(
                own_suites(one.name), OsRelease(os_id=one.name, codename=codename)
            )
            for codename, one in distributions().items()
        },
    }


TEXTS = texts()


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_the_rendered_text_matches_the_golden_file(name):
    """
    What is rendered is what was reviewed.
    """
    path = GOLDEN / name
    if os.environ.get("SLIPWAY_GOLDEN") == "write":
        path.write_text(TEXTS[name], encoding="utf-8")
    assert TEXTS[name] == path.read_text(encoding="utf-8")


def test_every_template_has_a_golden_file():
    """
    Every template has a golden file.
    """
    assert {path.stem for path in TEMPLATES.glob("*.j2")} <= set(TEXTS)


def need(tool):
    program = shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip(f"{tool} is not installed here")
    return program


def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def haproxy_reads(tmp_path):
    """
    Return HAProxy's check of a configuration; this machine may lack the service's group.
    """

    def read(text):
        path = tmp_path / "haproxy.cfg"
        text = re.sub(r"^ +(user|group) .*$", "", text, flags=re.MULTILINE)
        path.write_text(text.replace("/var/lib/slipway/", f"{tmp_path}/"))
        return run(need("haproxy"), "-c", "-f", str(path))

    return read


def test_haproxy_accepts_it(haproxy_reads):
    """
    It warns only of the missing state file.
    """
    done = haproxy_reads((GOLDEN / "haproxy.cfg").read_text())
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "[WARNING]" in line]
    assert all("server state file" in line for line in warnings), warnings


def test_haproxy_accepts_it_with_tls(haproxy_reads, tmp_path):
    """
    With the same one warning; without the certificate's file it does not start.
    """
    text = (GOLDEN / "haproxy-tls.cfg").read_text()
    assert haproxy_reads(text).returncode != 0
    path = tmp_path / "public.pem"
    path.write_text(make_authority().issue(("localhost",), NOW).pem.reveal())
    done = haproxy_reads(text.replace(layout.CERTIFICATE, str(path)))
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "[WARNING]" in line]
    assert all("server state file" in line for line in warnings), warnings


@pytest.mark.parametrize("key", ["monitoring_networks", "trusted_proxies", "cors_origins"])
def test_haproxy_accepts_a_long_list(haproxy_reads, key):
    """
    A line of its configuration has at most 64 words.
    """
    form = "https://app-{}.example.com" if key == "cors_origins" else "10.0.{}.0/24"
    values = tuple(form.format(number) for number in range(150))
    text = haproxy.config(make_spec(**{key: values}))
    done = haproxy_reads(text)
    assert done.returncode == 0, done.stderr
    assert all(text.count(value) == 1 for value in values)


def test_haproxy_accepts_an_origin_at_an_ipv6_address(haproxy_reads):
    """
    Its brackets are part of the word.
    """
    origins = ("https://[2001:db8::1]:3000", "http://[::1]")
    done = haproxy_reads(haproxy.config(make_spec(cors_origins=origins)))
    assert done.returncode == 0, done.stderr


def test_haproxy_would_notice(haproxy_reads):
    """
    Negative control: a misspelt keyword is refused.
    """
    text = (GOLDEN / "haproxy.cfg").read_text().replace("http-reuse safe", "http-reuse sometimes")
    assert haproxy_reads(text).returncode != 0


def systemd_reads(tmp_path, text, name="slipway-runtime@blue.service"):
    folder = tmp_path / "units"
    folder.mkdir()
    (folder / "slipway.slice").write_text((GOLDEN / "slipway.slice").read_text())
    # Its user and its program are on hosts, not here.
    text = re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE)
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/sh", text, flags=re.MULTILINE)
    (folder / "slipway-runtime@.service").write_text(text)
    done = run(need("systemd-analyze"), "verify", "--man=no", str(folder / name))
    # It also complains of this machine's own units.
    return [line for line in done.stderr.splitlines() if "slipway" in line]


def test_systemd_accepts_the_comparison_of_torch(tmp_path):
    folder = tmp_path / "etc" / "systemd" / "system"
    folder.mkdir(parents=True)
    text = re.sub(
        r"^ExecStart=\S+", "ExecStart=/bin/sh", TEXTS["slipway-torch.service"], flags=re.M
    )
    (folder / "slipway-torch.service").write_text(text)
    path = str(folder / "slipway-torch.service")
    done = run(need("systemd-analyze"), "verify", "--man=no", path)
    assert [line for line in done.stderr.splitlines() if "slipway" in line] == []


@pytest.mark.parametrize("name", ["gpu", "gpus", "vllm"])
def test_slots_with_gpus_start_after_the_comparison_of_torch(name):
    """
    They start too where it fails: they want it, and do not require it.
    """
    text = TEXTS[f"slipway-runtime-{name}@.service"]
    for key in ("Wants", "After"):
        assert re.search(rf"^{key}=.*\b{layout.TORCH_UNIT}$", text, re.MULTILINE), key
    assert (
        "ConditionPathExistsGlob=/opt/slipway/venvs/*/.uncompared"
        in (TEXTS["slipway-torch.service"])
    )
    assert layout.TORCH_UNIT not in TEXTS["slipway-runtime@.service"]


UNITS = sorted(name for name in TEXTS if name.endswith("@.service"))


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_it(tmp_path, name):
    """
    The golden units give no warning.
    """
    assert systemd_reads(tmp_path, (GOLDEN / name).read_text()) == []


def deadman_reads(folder, changed=lambda text: text):
    """
    Return systemd's complaints about the units of the host's own way back.
    """
    for name in layout.DEADMAN_UNITS:
        text = re.sub(r"^(ExecStart=)\S+", r"\1/bin/sh", TEXTS[name], flags=re.MULTILINE)
        (folder / name).write_text(changed(text))
    paths = [str(folder / name) for name in layout.DEADMAN_UNITS]
    done = run(need("systemd-analyze"), "verify", "--man=no", *paths)
    return [line for line in done.stderr.splitlines() if "slipway" in line]


def test_systemd_accepts_the_way_back(tmp_path):
    """
    Timer, service and unit of the boot give no warning.
    """
    assert deadman_reads(tmp_path) == []


@pytest.mark.parametrize("key", ["OnClockChange", "OnUnitInactiveSec", "LogLevelMax"])
def test_systemd_would_notice_a_misspelt_key_of_the_way_back(tmp_path, key):
    """
    Negative control: each key is one that systemd knows.
    """
    assert deadman_reads(tmp_path, lambda text: text.replace(f"{key}=", f"{key}s="))


def test_the_timer_comes_every_5_seconds(tmp_path):
    """
    As systemd reads its calendar.
    """
    [calendar] = re.findall(r"^OnCalendar=(.*)$", TEXTS[layout.DEADMAN_TIMER], re.MULTILINE)
    done = run(need("systemd-analyze"), "calendar", "--iterations=3", calendar)
    seconds = [int(s) for s in re.findall(r"\d\d:\d\d:(\d\d) UTC", done.stdout)]
    assert len(seconds) >= 3, done.stdout
    assert all(second % 5 == 0 for second in seconds)


def test_systemd_would_notice(tmp_path):
    """
    Negative control: an unknown key is named.
    """
    text = (GOLDEN / "slipway-runtime@.service").read_text().replace("RemoveIPC", "RemoveIPv4")
    assert any("RemoveIPv4" in line for line in systemd_reads(tmp_path, text))


def test_a_gpu_unit_sees_the_gpus_and_no_other_device():
    """
    A GPU row allows NVIDIA's devices one by one; the CPU row allows none.
    """
    gpu, cpu = TEXTS["slipway-runtime-gpu@.service"], TEXTS["slipway-runtime@.service"]
    assert "DeviceAllow=char-nvidia* rw" in gpu
    assert "PrivateDevices" not in gpu
    assert "PrivateDevices=yes" in cpu
    assert "DeviceAllow" not in cpu


def settings(name):
    lines = TEXTS[name].splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_the_sandbox_for_several_gpus_differs_in_two_settings():
    """
    From the unit of one GPU, comments aside; neither has a network.
    """
    one, more = settings("slipway-runtime-gpu@.service"), settings("slipway-runtime-gpus@.service")
    assert one - more == {"RestrictAddressFamilies=AF_UNIX"}
    assert more - one == {
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_NETLINK",
        "IPAddressAllow=localhost",
    }
    assert {"PrivateNetwork=yes", "IPAddressDeny=any"} <= more


def test_the_sandbox_for_vllm_differs_in_three_settings():
    """
    Comments aside; it has no network.
    """
    ours, vllm = settings("slipway-runtime-gpu@.service"), settings("slipway-runtime-vllm@.service")
    assert ours - vllm == {"RestrictAddressFamilies=AF_UNIX"}
    assert vllm - ours == {
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_NETLINK",
        "IPAddressAllow=localhost",
        "SystemCallFilter=sched_setscheduler",
    }
    assert {"PrivateNetwork=yes", "IPAddressDeny=any", "RestrictRealtime=yes"} <= vllm


def exposure(tmp_path, text):
    """
    Return systemd's exposure level of a unit, from 0 to 10; lower is better.
    """
    unit = tmp_path / "slipway-runtime@blue.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/sh", text, flags=re.MULTILINE))
    done = run(need("systemd-analyze"), "security", "--no-pager", "--offline=true", str(unit))
    rated = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert rated is not None, done.stdout[-200:] + done.stderr
    return float(rated[1])


@pytest.mark.parametrize("name", UNITS)
def test_the_sandbox_is_tight(tmp_path, name):
    """
    Each unit is within the exposure that `inv verify` accepts on hosts.
    """
    assert exposure(tmp_path, TEXTS[name]) <= 2.0


def test_a_loose_sandbox_would_be_noticed(tmp_path):
    """
    Negative control: without its last part the unit has a far higher exposure.
    """
    head, _, _ = TEXTS["slipway-runtime-vllm@.service"].partition("# The sandbox.")
    assert exposure(tmp_path, head) > 5.0


def test_keys_of_vllm_are_omitted_for_the_own_engine():
    """
    Older releases reject these keys.
    """
    document = yaml.safe_load(TEXTS["runtime-vllm.yml"])
    assert document.pop("engine") == "vllm"
    assert document.pop("vllm_args") == ["--stream-interval=4"]
    assert document.keys() == yaml.safe_load(TEXTS["runtime.yml"]).keys()


def test_memory_keys_are_omitted_at_their_defaults():
    """
    Other values are all rendered; older releases reject these keys.
    """
    assert MEMORY.keys() <= {n for n, each in OPTIONS.items() if each.rules.since > OLDEST_VERSION}
    document = yaml.safe_load(TEXTS["runtime-memory.yml"])
    assert {key: document.pop(key) for key in MEMORY} == MEMORY
    assert document.keys() == yaml.safe_load(TEXTS["runtime.yml"]).keys()


def test_an_omitted_option_has_the_same_default_in_the_runtime(tmp_path):
    """
    The runtime reads the values of the fleet file.
    """
    spec = make_spec()
    path = tmp_path / "runtime.yml"
    path.write_text(runtime_unit.config(spec))
    assert load_config({}, [path]).options == spec.service.options
    path.write_text(runtime_unit.config(make_spec(gpus=2)))  # negative control
    assert load_config({}, [path]).options != spec.service.options


def test_arguments_of_vllm_are_rendered_only_for_vllm():
    """
    With slipway's engine they have no effect, and older releases reject the key.
    """
    assert "vllm_args" not in runtime_unit.config(make_spec(vllm_args=("--seed=1",)))


def test_the_parser_of_calls_reaches_the_runtime(tmp_path):
    """
    Unless it is the default, which older releases reject by its key.
    """
    path = tmp_path / "runtime.yml"
    path.write_text(runtime_unit.config(make_spec(tool_parser="hermes")))
    assert load_config({}, [path]).tool_parser == "hermes"
    assert "tool_parser" not in runtime_unit.config(make_spec())


@pytest.mark.parametrize("name", [name for name in TEXTS if re.match(r"runtime.*\.yml", name)])
def test_the_runtime_accepts_its_rendered_configuration(tmp_path, name):
    """
    Every key and value is valid.
    """
    path = tmp_path / name
    path.write_text(TEXTS[name])
    assert load_config({}, [path]).max_batch_requests == 32
    path.write_text(TEXTS[name].replace("threads", "theads"))
    with pytest.raises(ConfigError, match="theads"):  # negative control
        load_config({}, [path])


def test_the_runtime_configuration_is_yaml_with_plain_seconds():
    """
    The runtime does not parse units.
    """
    document = yaml.safe_load(TEXTS["runtime.yml"])
    assert document == {
        "device": "cpu",
        "precision": "fp32",
        "threads": 2,
        "max_batch_requests": 32,
        "max_wait_s": 0.005,
        "max_queue_requests": 256,
        "request_timeout_s": 60.0,
        "cors_origins": [],
        "drain_timeout_s": 60.0,
    }


def test_the_digest_identifies_a_configuration():
    """
    Another port gives another digest.
    """
    one = re.search(r"description (.*)", haproxy.config(make_spec()))[1]
    two = re.search(r"description (.*)", haproxy.config(make_spec(port=8001)))[1]
    assert one != two
    assert haproxy.config(make_spec()) == haproxy.config(make_spec())


def test_the_token_is_in_the_environment_and_nowhere_else():
    """
    Only one file on the host has the secret.
    """
    assert [name for name, text in TEXTS.items() if TOKEN in text] == ["environment"]


def test_a_gpu_host_has_a_c_compiler_for_triton():
    """
    Triton builds its CUDA launcher with it; a CPU host gets none.
    """
    names = {
        device: {name for r in base.install(make_spec(device=device)) for name in _names(r)}
        for device in ("cpu", "cuda")
    }
    assert names["cuda"] - names["cpu"] == {"gcc", "libc6-dev", "python3-dev"}


def _names(resource):
    return getattr(resource, "names", ())
