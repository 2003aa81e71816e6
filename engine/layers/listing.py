"""Log-probabilities of many tokens at one position in few bytes, for the distances of /score."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from engine.layers.upload import upload
from engine.sequence import ListedTokens


def list_tokens(logits: Tensor, wanted: ListedTokens, first: int) -> tuple[Tensor, Tensor]:
    """Of `logits` [N, vocab]: token ids [N, k] as int32 and log-probabilities [N, k + 1] as float32.

    The last column is the log of what is left over, the sum over all tokens that are not listed. wanted.ids: those of
    all positions, of which the rows begin at `first`; without ids, the k likeliest tokens of each row.
    """
    logprobs = logits.log_softmax(-1)
    if wanted.ids:
        start = first * wanted.count * 4
        held = array("i", wanted.ids[start : start + len(logits) * wanted.count * 4])
        ids = upload(held, logits.device, torch.long).view(len(logits), wanted.count)
    else:
        ids = logprobs.topk(wanted.count, -1).indices
    rest = logprobs.scatter(1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    values = torch.cat((logprobs.gather(1, ids), rest), -1)
    return ids.int(), values
