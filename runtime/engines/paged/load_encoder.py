"""
From the directory of an encoder to an engine that makes embeddings and nothing else.
"""

from collections.abc import Callable
from pathlib import Path

from runtime.contract.errors import ModelError
from runtime.engines.base.protocol import Load
from runtime.engines.paged.embedding import BATCH_TOKENS, embed_with_encoder
from runtime.engines.paged.step import Embedding, LoadedModel, Running, Step
from runtime.memory.plan import step_tokens
from runtime.models.encoder import EncoderConfig, load_encoder
from runtime.models.loader import PRECISIONS, prepare_torch
from runtime.models.pooling import Pooling, read_pooling

MEAN = Pooling("mean")  # of a model whose files do not say it


class NoRunner:
    """
    See `step.StepRunner`: an encoder has no steps, and its API asks for none.
    """

    def launch(self, step: Step) -> Running:
        raise AssertionError("an encoder generates nothing")


def load_encoder_engine(load: Load, config: EncoderConfig) -> LoadedModel:
    """
    Return the encoder of *load*, whose files were checked.

    Raises:
        ModelError: A file was truncated meanwhile.
    """
    options = load.options
    prepare_torch(options.threads)
    encoder = load_encoder(
        load.model_dir, config, device=options.device, dtype=PRECISIONS[options.precision]
    )
    pooling = read_pooling(Path(load.model_dir), options.pooling) or MEAN
    embed = embed_with_encoder(encoder, pooling)
    embed([[0]])  # whatever a first batch loads is loaded now
    tokens = BATCH_TOKENS[options.device]
    return LoadedModel(
        runner=NoRunner(),
        pages=2,
        page_tokens=options.page_tokens,
        step_tokens=step_tokens(options),
        context_tokens=config.context_tokens,
        vocabulary=config.vocabulary,
        parameters=encoder.parameters,
        stop_token_ids=frozenset(),
        prepare=_refuse_swap,
        embedding=Embedding(embed, config.hidden, config.matryoshka, tokens),
        generates=False,
    )


def _refuse_swap(model_dir: str) -> Callable[[], None]:
    raise ModelError(
        f"{model_dir}: not loaded",
        why="the weights of an encoder are not swapped",
        fix="release it: a new slot starts with it",
    )
