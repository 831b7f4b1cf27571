"""
Computes the embeddings of a batch of texts, with an encoder or a decoder.
"""

from collections.abc import Sequence
from functools import wraps

import torch
from torch import Tensor
from torch.nn import functional

from runtime.engines.paged.step import DeviceLost, EmbedTexts
from runtime.models.decoder import Decoder, DecoderLayer
from runtime.models.encoder import Encoder
from runtime.models.pooling import Pooling

BATCH_TOKENS = {"cuda": 16384, "cpu": 2048}  # of a batch, padding included


def _reporting_lost_device(embed: EmbedTexts) -> EmbedTexts:
    """
    Return *embed* with the errors that the worker tells apart.

    Raises:
        DeviceLost: From the function: this process can't use its device any more.
    """

    @wraps(embed)
    def call(texts: Sequence[Sequence[int]]) -> list[bytes | None]:
        try:
            return embed(texts)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error

    return call


def embed_with_encoder(encoder: Encoder, pooling: Pooling) -> EmbedTexts:
    """
    Return a function that computes a batch at once, padded to its longest text.
    """

    def embed(texts: Sequence[Sequence[int]]) -> list[bytes | None]:
        lengths = torch.tensor([len(text) for text in texts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (n, t) bool
        tokens = torch.zeros(mask.shape, dtype=torch.int64)
        tokens[mask] = torch.tensor([token for text in texts for token in text])
        with torch.inference_mode():
            mask = mask.to(encoder.device)
            return _as_bytes(pooling.pool(encoder(tokens.to(encoder.device), mask), mask))

    return _reporting_lost_device(embed)


def embed_with_decoder(model: Decoder, pooling: Pooling) -> EmbedTexts:
    """
    Return a function that computes one text after the other, without a cache.
    """

    def attend(layer: DecoderLayer, qkv: Tensor, angles: Tensor) -> Tensor:
        q, k, v = (part.transpose(0, 1)[None] for part in layer.split(qkv, angles))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y[0].transpose(0, 1).flatten(1)

    def one(text: Sequence[int]) -> Tensor:
        tokens = torch.tensor(text, device=model.device)
        positions = torch.arange(len(text), device=model.device)
        hidden = model.hidden(tokens, positions, attend)[None]
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=model.device)
        return pooling.pool(hidden, mask)

    def embed(texts: Sequence[Sequence[int]]) -> list[bytes | None]:
        with torch.inference_mode():
            return _as_bytes(torch.cat([one(text) for text in texts]))

    return _reporting_lost_device(embed)


def _as_bytes(vectors: Tensor) -> list[bytes | None]:
    """
    Return the fp32 values of each of *vectors* (n, d), little-endian; None for one that is not
    finite.
    """
    rows = vectors.cpu()
    finite = torch.isfinite(rows).all(1).tolist()
    values = [row.tobytes() for row in rows.numpy().astype("<f4")]
    return [value if good else None for value, good in zip(values, finite, strict=True)]
