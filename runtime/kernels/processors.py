"""
Logits processors in torch, for any device: penalties, bias, masks, top_k, min_p, log probabilities.

They compute the rows that ask for them and no others, so a plain step launches none of them.  None
waits for the device.  Each row is computed as if it were alone.

Shapes: b rows, v vocabulary; all logits are fp32.  A dropped token has the logit DROPPED, which is
finite: the sampler takes infinite logits for those of a broken model.
"""

import torch
from torch import Tensor

DROPPED = -1e30  # exp() of it is 0, also after a division by a temperature
IN_PROMPT = 1 << 30  # in a history, added to the number of occurrences in the answer
MOST_SELECTED = 1024  # larger top_k are found by sorting


def add_bias(logits: Tensor, tokens: Tensor, biases: Tensor) -> None:
    """
    Add *biases* (b, n) in place to the logits of *tokens* (b, n) int64.

    A token of a row that stands there twice has a bias of 0 in all but one place.
    """
    logits.scatter_add_(1, tokens, biases)


def penalize(
    logits: Tensor, history: Tensor, repetition: Tensor, frequency: Tensor, presence: Tensor
) -> None:
    """
    Apply the penalties (b,) in place.  Neutral ones, 1, 0 and 0, change nothing.

    Args:
        history: (b, v) int32; for each token its number of occurrences in the answer, and
            IN_PROMPT if the prompt has it.

    Source: vLLM 0.32, `model_executor/layers/utils.apply_penalties`.
    """
    repetition = repetition[:, None]
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits.copy_(torch.where(history != 0, repeated, logits))
    counts = history & (IN_PROMPT - 1)
    logits -= frequency[:, None] * counts
    logits -= presence[:, None] * (counts > 0)


def drop_tokens(logits: Tensor, rows: Tensor, tokens: Tensor) -> None:
    """
    Drop *tokens* (n,) of *rows* (n,), both int64, in place.
    """
    # Not `new_tensor`, whose copy to a GPU waits.
    logits.index_put_((rows, tokens), logits.new_full((), DROPPED))


def apply_masks(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    """
    Drop in place, from *rows* (n,) int64, the tokens whose bit in *masks* is 0.

    Args:
        masks: (n, ceil(v / 32)) int32, the lowest bit first; see `Step.masks`.
    """
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = (masks[:, :, None] >> bits & 1).flatten(1)[:, : logits.shape[1]]
    kept = logits.index_select(0, rows).masked_fill_(allowed == 0, DROPPED)
    logits.index_copy_(0, rows, kept)


def keep_min_p(logits: Tensor, temperatures: Tensor, min_p: Tensor) -> None:
    """
    Drop in place the tokens less likely than *min_p* (b,) of the likeliest; 0 drops none.
    """
    scaled = logits / torch.where(temperatures > 0, temperatures, 1.0)[:, None]
    lowest = scaled.amax(dim=1, keepdim=True) + min_p.log()[:, None]
    logits.masked_fill_(scaled < lowest, DROPPED)


def keep_top_k(logits: Tensor, top_k: Tensor, most: int) -> None:
    """
    Drop in place all but the *top_k* (b,) int64 likeliest tokens, and those as likely as the last.

    Args:
        top_k: 0 for all.
        most: The largest of *top_k*; not over v.
    """
    if most <= MOST_SELECTED:
        highest = logits.topk(most, dim=1).values
    else:
        highest = logits.sort(dim=1, descending=True).values
    last = highest.gather(1, (top_k - 1).clamp_min(0)[:, None])
    logits.masked_fill_((logits < last) & (top_k > 0)[:, None], DROPPED)


def log_probabilities(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """
    Return the log probabilities of *tokens* (b,) int64, (b,), and of the likeliest tokens with
    their ids, (b, top) each, the likeliest first.
    """
    total = logits.logsumexp(dim=1)
    highest, ids = logits.topk(top, dim=1)
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return chosen - total, highest - total[:, None], ids


def count_tokens(history: Tensor, rows: Tensor, tokens: Tensor) -> None:
    """
    Add the *tokens* (n,) to the *rows* (n,) of a history, in place, all int64; each row once.

    Row 0 is the history of rows without penalties: it stays 0.
    """
    flat = history.view(-1)
    flat.scatter_add_(0, rows * history.shape[1] + tokens, (rows > 0).int())
