"""
Logits to tokens: greedy at temperature 0, else top-p.  Each row has its own draw.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def choose(
    logits: Tensor,
    temperatures: Sequence[float],
    top_ps: Sequence[float],
    draws: Sequence[float],
) -> Tensor:
    """
    Return one token for each row of *logits* (b, vocabulary), (b,) int64.

    Args:
        draws: From 0 to 1, one a row, drawn by the row's own generator, so that no answer
            depends on its neighbours.  Not looked at for a row of temperature 0.
    """
    chosen = logits.argmax(dim=-1)
    drawn = [row for row, temperature in enumerate(temperatures) if temperature > 0]
    if not drawn:
        return chosen

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor([values[row] for row in drawn], device=logits.device)[:, None]

    rows = torch.tensor(drawn, device=logits.device)
    shares = torch.softmax(logits[rows] / column(temperatures), dim=-1)
    shares, order = shares.sort(dim=-1, descending=True)
    before = shares.cumsum(dim=-1) - shares
    # The smallest set that reaches top_p: whoever stands before it is reached. Never empty.
    kept = torch.where(before < column(top_ps), shares, 0.0)
    reached = kept.cumsum(dim=-1)
    # The first place that reaches the draw: also a draw that rounds to 1 stays within the set.
    place = torch.searchsorted(reached, column(draws) * reached[:, -1:])
    chosen[rows] = order.gather(1, place)[:, 0]
    return chosen
