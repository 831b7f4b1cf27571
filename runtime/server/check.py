"""
`python -m runtime check`: says whether a model can be started, and plans its memory.

It refuses what the start refuses, in the same words.  It reads no weights: a model that computes
nothing but NaN fails the warm-up of the start alone.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from runtime.contract import ENV_RELEASE_DIR, EXIT_OK, GOLDEN_FILE, MODEL_LINK
from runtime.contract.engine_options import OPTIONS
from runtime.contract.errors import ConfigError, RuntimeFault
from runtime.contract.visible_text import visible
from runtime.engines.base.host_memory import HostMemory
from runtime.engines.base.slow_imports import import_failed
from runtime.memory.plan import GIB
from runtime.server.check_report import Gpu, MemoryReport, PlanOrFault, as_document, as_text
from runtime.server.config import HostConfig, load_config

if TYPE_CHECKING:
    from runtime.models.config import DecoderConfig
    from runtime.models.encoder import EncoderConfig  # with torch

WEIGHTS, KV = OPTIONS["weights"].choices, OPTIONS["kv"].choices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="DIR", type=Path, help="model directory (default: the release's)")
    words = "each laid over the one before (default: those that the runtime would read)"
    add("--config", metavar="FILE", nargs="+", type=Path, default=[], help=words)
    words = "memory of each GPU, such as 80GiB (default: what torch finds here)"
    add("--gpu-memory", metavar="SIZE", help=words)
    words = "memory of the runtime on a CPU: memory_max of the unit (default: this host's)"
    add("--memory", metavar="SIZE", help=words)
    add("--json", action="store_true", help="one JSON document in place of the table")


def run(args: argparse.Namespace, env: Mapping[str, str], out: TextIO, err: TextIO) -> int:
    """
    Write the plan to *out* and errors to *err*; return the exit code.
    """
    found: MemoryReport | None = None
    try:
        found = _look(args, env)
        fault = found.answer if isinstance(found.answer, RuntimeFault) else None
    except RuntimeFault as error:
        fault = error
    code = EXIT_OK if fault is None else fault.exit_code
    if args.json:
        out.write(json.dumps(as_document(found, fault, code), indent=2) + "\n")
        return code
    if found is not None:
        out.writelines(f"{visible(line.rstrip())}\n" for line in as_text(found))
    if fault is not None:
        err.write(f"{fault}\n")
    return code


def _look(args: argparse.Namespace, env: Mapping[str, str]) -> MemoryReport:
    config = load_config(env, args.config)
    if config.options.engine != "slipway":
        why, fix = "vLLM plans its memory itself", "see the lines of vLLM in the unit's log"
        raise ConfigError(f"engine: {config.options.engine}", why=why, fix=fix)
    # Slow imports, which a start does not need before it has an engine process.
    try:
        from runtime.engines.paged.check_files import check_files, makes_embeddings
    except Exception as error:
        raise import_failed(error) from error
    host = _find_host_memory(config, args.memory)
    gpu = _find_gpu(config, args.gpu_memory)
    from runtime.models.encoder import EncoderConfig
    from runtime.server.model_files import check_tokens, open_model_files
    from runtime.server.prompts import PromptReader
    from runtime.server.warmup import check_prompt, fitted

    release_dir = Path(env.get(ENV_RELEASE_DIR) or ".")
    golden = release_dir / GOLDEN_FILE
    prompt = check_prompt(golden) if args.model is None else None
    model_dir = args.model or release_dir / MODEL_LINK
    with closing(open_model_files(model_dir, config.options)) as files:
        model = check_files(model_dir, config.options, is_here=args.gpu_memory is None)
        embeds = config.options.gpus == 1 and makes_embeddings(model_dir, config.options)
        answers = {
            (weights, kv): _answer(
                config.model_copy(update={"weights": weights, "kv": kv}),
                model,
                gpu,
                host,
                embeds=embeds,
            )
            for weights in WEIGHTS
            for kv in KV
        }
        warning = check_tokens(model_dir, files.codec, model.vocabulary)
        warnings = [warning] if warning else []
        found = MemoryReport(config, model_dir, gpu, host, answers, warnings)
        if prompt is not None and not isinstance(found.answer, RuntimeFault):
            reader = PromptReader(files.codec, files.template, model.vocabulary)
            limits = config.limits(model.context_tokens, model.vocabulary)
            generates = not isinstance(model, EncoderConfig)
            asyncio.run(fitted(prompt, reader, limits, golden, generates=generates))
    return found


def _answer(
    config: HostConfig,
    model: "DecoderConfig | EncoderConfig",
    gpu: Gpu | None,
    host: HostMemory | None,
    *,
    embeds: bool,
) -> PlanOrFault:
    from runtime.engines.paged.device_memory import plan_for

    memory = gpu or host
    try:
        config.check(Path("configuration"))
        total_bytes = None if memory is None else memory.total_bytes
        limit = "" if host is None else host.limit
        return plan_for(config.options, model, total_bytes, limit, embeds=embeds)
    except RuntimeFault as error:
        return error


def _find_host_memory(config: HostConfig, size: str | None) -> HostMemory | None:
    if config.options.device != "cpu":
        if size is None:
            return None
        why, fix = "the configuration says device: cuda", "say --gpu-memory"
        raise ConfigError(f"--memory {size}: of no use", why=why, fix=fix)
    if size is not None:
        return HostMemory(_size("--memory", size) // config.options.gpus, "--memory")
    from runtime.engines.paged.device_memory import host_memory_of

    return host_memory_of(config.options)


def _find_gpu(config: HostConfig, size: str | None) -> Gpu | None:
    if config.options.device == "cpu":
        if size is None:
            return None
        why, fix = "the configuration says device: cpu, or nothing", "say device: cuda in a file"
        raise ConfigError(f"--gpu-memory {size}: there is no GPU", why=why, fix=fix)
    if size is not None:
        return Gpu(_size("--gpu-memory", size))
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < (gpus := config.options.gpus):
        why = f"the configuration says device: cuda, gpus: {gpus}; torch sees {count} here"
        fix = "say what each GPU of the host has, as --gpu-memory 80GiB"
        raise ConfigError("--gpu-memory: missing", why=why, fix=fix)
    seen = [torch.cuda.mem_get_info(index) for index in range(gpus)]
    return Gpu(min(total for _, total in seen), min(free for free, _ in seen))


def _size(flag: str, size: str) -> int:
    if found := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([MG])iB", size):
        return int(float(found[1]) * {"M": 2**20, "G": GIB}[found[2]])
    why, fix = "it is no number with its unit, MiB or GiB", "say it as 80GiB or 81559MiB"
    raise ConfigError(f"{flag} {size}: not a size", why=why, fix=fix)
