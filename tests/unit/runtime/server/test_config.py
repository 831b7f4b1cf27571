import os

import pytest

from runtime.contract import EXIT_CONFIG
from runtime.contract.errors import ConfigError
from runtime.server.config import load_config, load_settings

RELEASE = "version: v1.2.0\nmodel_name: lab\n"
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]\n" for n in range(8))


@pytest.fixture
def write(tmp_path):
    def write(release=RELEASE, host=None, **env):
        (tmp_path / "config.yml").write_text(release)
        variables = {
            "SLIPWAY_SLOT": "blue",
            "SLIPWAY_SOCKET": "/run/slipway/blue/runtime.sock",
            "SLIPWAY_RELEASE_DIR": str(tmp_path),
        }
        if host is not None:
            (tmp_path / "runtime.yml").write_text(host)
            variables["SLIPWAY_HOST_CONFIG"] = str(tmp_path / "runtime.yml")
        return {key: value for key, value in (variables | env).items() if value is not None}

    return write


def test_a_key_of_the_release_overrides_the_host(write):
    """
    Other keys come from the host, then from the defaults.
    """
    env = write(
        release=RELEASE + "threads: 2\n",
        host="threads: 8\nmax_queue_requests: 3\ncors_origins: ['https://a.example']\n",
    )

    config = load_settings(env).config

    assert (config.version, config.model_name) == ("v1.2.0", "lab")
    assert (config.threads, config.max_queue_requests) == (2, 3)
    assert config.cors_origins == ("https://a.example",)
    assert config.request_timeout_s == 60.0


def test_a_release_may_bring_its_own_engine(write):
    """
    The engine is a key like the others; the arguments of vLLM are replaced as a whole.
    """
    host = 'engine: vllm\nvllm_args: ["--stream-interval=4"]\n'
    assert load_settings(write(host=host)).config.vllm_args == ("--stream-interval=4",)
    changed = RELEASE + "engine: slipway\nvllm_args: []\n"
    config = load_settings(write(release=changed, host=host)).config
    assert (config.engine, config.vllm_args) == ("slipway", ())


def test_tokens_come_from_the_environment_and_are_not_shown(write):
    """
    Tokens are separated by commas, and a repr hides them.
    """
    settings = load_settings(write(SLIPWAY_API_TOKENS="s3cret, other,"))

    assert [token.get_secret_value() for token in settings.api_tokens] == ["s3cret", "other"]
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("release", "host", "words"),
    [
        (RELEASE, "theads: 2\n", ("runtime.yml", "theads", "did you mean threads?")),
        (RELEASE + "theads: 2\n", None, ("config.yml", "theads", "did you mean threads?")),
        (RELEASE + "threads: many\n", None, ("config.yml", "threads", "'many'")),
        (RELEASE, "max_batch_requests: 0\n", ("runtime.yml", "max_batch_requests", "0")),
        (RELEASE + "engine: vlm\n", None, ("config.yml", "engine", "'vlm'")),
        (RELEASE + "vllm_args: --x\n", None, ("config.yml", "vllm_args", "'--x'")),
        (RELEASE, "vllm_args: [--seed=1, 4]\n", ("runtime.yml", "vllm_args.1", "4")),
        (RELEASE, "vllm_args: [--served_model_name=x]\n", ("vllm_args", "not an argument")),
        (RELEASE, "version: v1\n", ("runtime.yml", "version", "unknown key")),
        ("model_name: lab\n", None, ("config.yml", "version", "missing")),
        ("version: 'v1\\nx: y'\nmodel_name: lab\n", None, ("config.yml", "version")),
        (RELEASE, "memory_fraction: 0.99\n", ("runtime.yml", "memory_fraction", "0.98")),
        (RELEASE, "page_tokens: 48\n", ("runtime.yml", "page_tokens", "48")),
        (RELEASE + "step_tokens: 8\n", None, ("config.yml", "step_tokens", "16")),
        (RELEASE + "gpus: 9\n", None, ("config.yml", "gpus", "9")),
        (RELEASE + "kv: int4\n", None, ("config.yml", "kv", "'int4'")),
        ("- a\n", None, ("config.yml", "list")),
        ("a: [\n", None, ("config.yml", "is not YAML")),
        (RELEASE + "threads: 0010\n", None, ("config.yml", "threads", "'0010'")),
        (RELEASE + "threads: 0x2\n", None, ("config.yml", "threads", "'0x2'")),
        (RELEASE + "threads: 1:30\n", None, ("config.yml", "threads", "'1:30'")),
        (RELEASE + "threads: 1_0\n", None, ("config.yml", "threads", "'1_0'")),
        (RELEASE + "request_timeout_s: .inf\n", None, ("config.yml", "request_timeout_s")),
        (RELEASE + "request_timeout_s: 1.0e+999\n", None, ("config.yml", "request_timeout_s")),
        (RELEASE + "drain_timeout_s: .nan\n", None, ("config.yml", "drain_timeout_s")),
        (RELEASE + "request_log: yes\n", None, ("config.yml", "request_log", "'yes'")),
        (RELEASE + "threads: 2026-13-45\n", None, ("config.yml", "threads", "'2026-13-45'")),
        (RELEASE + 'x: "\\UFFFFFFFF"\n', None, ("config.yml", "is not YAML")),
        (RELEASE + "x: \0\n", None, ("config.yml", "is not YAML")),
        (RELEASE + "threads: 1\nthreads: 2\n", None, ("duplicate key threads, first on line 3",)),
        (RELEASE + "1: 2\n", None, ("config.yml", "should be text")),
        (RELEASE + "? {a: b}\n: 2\n", None, ("config.yml", "should be text")),
        (RELEASE + "x: !!set {a}\n", None, ("config.yml", "the tag")),
        (RELEASE + "x: !!python/name:os.system x\n", None, ("config.yml", "is not YAML")),
        (RELEASE + "x: &a [*a]\n", None, ("config.yml", "contains itself")),
        (RELEASE + "---\na: 1\n", None, ("config.yml", "another document")),
        pytest.param(RELEASE + f"x: {'[' * 5000}", None, ("config.yml", "is not YAML"), id="deep"),
        pytest.param(RELEASE + BOMB, None, ("config.yml", "more than 10000 entries"), id="bomb"),
        pytest.param(f"# {'x' * 2**20}", None, ("config.yml", "more than 1048576"), id="large"),
        pytest.param(RELEASE + f"kv: {'x' * 9999}\n", None, ("config.yml", "kv"), id="long"),
        (RELEASE, "", None),
    ],
)
def test_a_wrong_key_is_named_with_its_file(write, release, host, words):
    """
    The error has the file, the key and its value, and exits 78.
    """
    env = write(release, host)
    if words is None:
        load_settings(env)  # negative control: an empty host file is no error
        return
    with pytest.raises(ConfigError) as caught:
        load_settings(env)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.exit_code == EXIT_CONFIG
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("request_timeout_s: 1.0e-05", "request_timeout_s", 1e-05),  # as yaml.safe_dump writes it
        ("request_timeout_s: 0.30000000000000004", "request_timeout_s", 0.1 + 0.2),
        ("request_log: True", "request_log", True),
        ("cors_origins: &a [x]\nvllm_args: *a", "vllm_args", ("x",)),
        ("<<: {threads: 2}", "threads", 2),
    ],
)
def test_what_yaml_allows_is_read(write, text, key, value):
    """
    Aliases and merged mappings too; a date is text.
    """
    release = "version: 2026-01-01\nmodel_name: lab\nengine: vllm\n"
    text = text.replace("[x]", '["--seed=1"]')
    value = ("--seed=1",) if value == ("x",) else value
    config = load_settings(write(release=release + text + "\n")).config
    assert (config.version, getattr(config, key)) == ("2026-01-01", value)


def test_a_configuration_is_a_plain_file_in_utf_8(write, tmp_path):
    """
    A pipe would be waited for; a byte order mark is skipped.
    """
    env = write()
    (tmp_path / "config.yml").write_bytes(b"\xef\xbb\xbf" + RELEASE.encode())
    assert load_settings(env).config.version == "v1.2.0"
    (tmp_path / "config.yml").write_bytes(RELEASE.encode("utf-16"))
    with pytest.raises(ConfigError, match="save the file as UTF-8"):
        load_settings(env)
    (tmp_path / "config.yml").unlink()
    os.mkfifo(tmp_path / "config.yml")
    with pytest.raises(ConfigError, match="not a plain file"):
        load_settings(env)


@pytest.mark.parametrize("name", ["SLIPWAY_SLOT", "SLIPWAY_SOCKET"])
def test_a_missing_variable_is_named(write, name):
    """
    The error names the variable that is not set.
    """
    with pytest.raises(ConfigError, match=name):
        load_settings(write(**{name: None}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLIPWAY_SLOT", "\x1b[2J"),
        ("SLIPWAY_SLOT", "../blue"),
        ("SLIPWAY_API_TOKENS", "one,\udcff"),
    ],
)
def test_a_wrong_variable_is_named(write, name, value):
    """
    Its value would become a header, or could not be compared.
    """
    with pytest.raises(ConfigError, match=f"environment: {name}"):
        load_settings(write(**{name: value}))


@pytest.mark.parametrize("port", [-1, 65536, 10**30])
def test_a_port_is_checked_before_anything_starts(write, port):
    """
    The system's own error is an OverflowError.
    """
    assert load_settings(write(), port=65535).port == 65535
    with pytest.raises(ConfigError, match="not a port"):
        load_settings(write(), port=port)


def test_a_missing_file_is_named(write, tmp_path):
    """
    The error of a release without config.yml has its path.
    """
    env = write()
    (tmp_path / "config.yml").unlink()
    with pytest.raises(ConfigError, match=r"config\.yml: can't be read"):
        load_settings(env)


def test_a_port_replaces_the_socket(write):
    """
    With a port, no socket is required.
    """
    assert load_settings(write(SLIPWAY_SOCKET=None), port=8001).port == 8001


def test_the_batch_budget_bounds_one_request(write):
    """
    A request that no batch can hold is refused at once.
    """
    settings = load_settings(write(RELEASE + "max_batch_tokens: 50\n"))
    assert settings.config.limits(context_tokens=100).context_tokens == 50
    assert load_settings(write()).config.limits(context_tokens=100).context_tokens == 100


def test_the_longest_request_is_bounded_by_option_and_model(write):
    """
    context_tokens is a limit: it does not extend the model's context.
    """
    settings = load_settings(write(RELEASE + "context_tokens: 50\n"))
    assert settings.config.limits(context_tokens=100).context_tokens == 50
    assert settings.config.limits(context_tokens=20).context_tokens == 20
    settings = load_settings(write(RELEASE + "context_tokens: 50\nmax_batch_tokens: 40\n"))
    assert settings.config.limits(context_tokens=100).context_tokens == 40


def test_conflicting_keys_are_refused_after_merging(write):
    """
    8 bits with fp32 on a GPU; the release may correct a conflict of the host's file.
    """
    host = "device: cuda\nweights: int8\n"
    load_settings(write(RELEASE + "precision: bf16\n", host))
    load_settings(write(RELEASE, "device: cpu\nweights: int8\n"))
    with pytest.raises(ConfigError, match=r"config\.yml: weights: int8, with precision: fp32"):
        load_settings(write(RELEASE, host))


def test_the_configuration_alone_needs_no_slot_and_no_names(write, tmp_path):
    """
    `check` reads the files of the runtime, or the files of its flags, the last on top.
    """
    env = write(RELEASE + "threads: 2\n", "threads: 8\nkv: fp8\n", SLIPWAY_SLOT=None)
    config = load_config(env)
    assert (config.threads, config.kv) == (2, "fp8")

    files = [tmp_path / "config.yml", tmp_path / "runtime.yml"]
    assert load_config({}, files).threads == 8
    assert load_config({"SLIPWAY_RELEASE_DIR": str(tmp_path)}).threads == 2


def test_the_configuration_alone_has_the_same_rules(write, tmp_path, monkeypatch):
    """
    A missing file, an unknown key, two conflicting keys.
    """
    monkeypatch.chdir(tmp_path)
    assert load_config({}).threads == 1  # negative control: nothing is said
    with pytest.raises(ConfigError, match=r"gone\.yml: can't be read"):
        load_config({}, [tmp_path / "gone.yml"])
    write(RELEASE + "theads: 2\n")
    with pytest.raises(ConfigError, match="did you mean threads"):
        load_config({}, [tmp_path / "config.yml"])
    write(RELEASE, "device: cuda\nweights: int4\n")
    with pytest.raises(ConfigError, match="weights: int4"):
        load_config({}, [tmp_path / "runtime.yml"])


@pytest.mark.parametrize("tokens", [None, "", " ", ",", "one", "one,two,three"])
def test_another_number_of_tokens_than_asked_for_stops_the_start(write, tokens):
    """
    Without its secrets the runtime would serve everybody; the exit code is that of the config.
    """
    found = {} if tokens is None else {"SLIPWAY_API_TOKENS": tokens}
    with pytest.raises(ConfigError) as caught:
        load_settings(write(SLIPWAY_API_TOKENS_COUNT="2", **found))
    assert caught.value.exit_code == EXIT_CONFIG
    assert "SLIPWAY_API_TOKENS" in str(caught.value)
    assert "one" not in str(caught.value)


def test_the_number_of_tokens_is_that_of_the_fleet(write):
    """
    Equal numbers pass, zero among them; without a number any is accepted.
    """
    asked = {"SLIPWAY_API_TOKENS_COUNT": "2", "SLIPWAY_API_TOKENS": "one,two"}
    assert len(load_settings(write(**asked)).api_tokens) == 2
    assert load_settings(write(SLIPWAY_API_TOKENS_COUNT="0")).api_tokens == ()
    assert len(load_settings(write(SLIPWAY_API_TOKENS="one")).api_tokens) == 1
