"""A text that somebody typed, its tokens coloured by how far the student is from the teacher.

Shape legend: L tokens, n positions of one chunk, V vocabulary, H hidden.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lmdistill.data import Document, RowEncoder
from lmdistill.errors import DataError, TokenizerMismatch
from lmdistill.models import last_hidden, output_head
from lmdistill.objectives.divergences import DIVERGENCES, find_divergence
from lmdistill.objectives.rows import LogitsView
from lmdistill.studio.heat_view import LONGEST, NAMES, Heat, HeatToken
from lmdistill.studio.shelf import Loaded
from lmdistill.trajectories.reader import context_of

TOP = 5
"""Likeliest tokens of each model that are named."""
_CHUNK = 64

assert set(NAMES) <= set(DIVERGENCES)


@torch.no_grad()
def heat_of(teacher: Loaded, student: Loaded, text: str, divergence: str) -> Heat:
    """Compare two models on a text, token by token, on the ids that they share.

    Where the student's vocabulary was trimmed, the teacher's distribution is renormalised over what was kept. Raises
    TokenizerMismatch for models that cut text otherwise, DataError for a text of fewer than two tokens.
    """
    encoder = RowEncoder(student.tokenizer)
    own_L = torch.as_tensor(encoder.prompt(Document(text=text, origin="text"), 2**20), dtype=torch.long)
    cut = max(0, len(own_L) - _longest(teacher, student))
    own_L = own_L[: len(own_L) - cut]
    if len(own_L) < 2:
        raise DataError(f"the text has {len(own_L)} tokens; type at least 2: nothing predicts the first")
    kept_V = _map(teacher, student)
    theirs_L = own_L if kept_V is None else kept_V[own_L]
    wanted = find_divergence(divergence)
    hidden = [_hidden(loaded, ids_L) for loaded, ids_L in ((teacher, theirs_L), (student, own_L))]
    tokens = [HeatToken(_named(student, int(own_L[0])), math.nan, math.nan, math.nan, [], [])]
    for first in range(0, len(own_L) - 1, _CHUNK):
        rows = slice(first, min(first + _CHUNK, len(own_L) - 1))
        log_t_nV = _logprobs(teacher, hidden[0][rows], kept_V, len(student.tokenizer))
        log_s_nV = _logprobs(student, hidden[1][rows], None, len(student.tokenizer))
        summands_nV, _ = wanted.summands(log_s_nV, log_t_nV, *wanted.context(log_s_nV, log_t_nV))
        targets_n = own_L[rows.start + 1 : rows.stop + 1]
        tokens += _tokens(student, targets_n, summands_nV.sum(-1), log_t_nV, log_s_nV)
    return Heat(tokens, divergence, cut)


def _longest(*models: Loaded) -> int:
    return min([LONGEST, *(limit for loaded in models if (limit := context_of(loaded.model)) is not None)])


def _map(teacher: Loaded, student: Loaded) -> Tensor | None:
    """The teacher's id of each of the student's; None where they are the same."""
    if teacher.tokenizer.get_vocab() == student.tokenizer.get_vocab():
        return None
    if student.kept_ids is not None and int(student.kept_ids.max()) < len(teacher.tokenizer):
        return student.kept_ids.long().cpu()
    raise TokenizerMismatch(
        f"{teacher.label} has {len(teacher.tokenizer)} tokens and {student.label} {len(student.tokenizer)}, and "
        "they are not the same ones: they cannot be set beside each other. Choose models of one tokenizer; a student "
        "with a trimmed vocabulary belongs on the student's side"
    )


def _hidden(loaded: Loaded, ids_L: Tensor) -> Tensor:
    device = loaded.model.device
    batch = {"input_ids": ids_L[None].to(device), "position_ids": torch.arange(len(ids_L), device=device)[None]}
    return last_hidden(loaded.model, batch)[0]


def _logprobs(loaded: Loaded, hidden_nH: Tensor, kept_V: Tensor | None, size: int) -> Tensor:
    head = output_head(loaded.model, size if kept_V is None else None)
    weight_VH = head.weight_VH[: head.vocabulary_size]
    bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary_size]
    logits_nV = F.linear(hidden_nH.to(weight_VH.dtype), weight_VH, bias_V).float()
    logits_nV = LogitsView(head.logit_scale, head.softcap).logits(logits_nV)
    if kept_V is not None:
        logits_nV = logits_nV[:, kept_V.to(logits_nV.device)]
    return logits_nV.log_softmax(-1).cpu()


def _tokens(
    student: Loaded, targets_n: Tensor, values_n: Tensor, log_t_nV: Tensor, log_s_nV: Tensor
) -> list[HeatToken]:
    tops = [log_nV.exp().topk(min(TOP, log_nV.shape[1]), dim=-1) for log_nV in (log_t_nV, log_s_nV)]
    found = []
    for row, target in enumerate(targets_n.tolist()):
        likeliest = [
            [(_named(student, i), p) for p, i in zip(top.values[row].tolist(), top.indices[row].tolist(), strict=True)]
            for top in tops
        ]
        logprobs = float(log_t_nV[row, target]), float(log_s_nV[row, target])
        found.append(HeatToken(_named(student, target), float(values_n[row]), *logprobs, *likeliest))
    return found


def _named(loaded: Loaded, token: int) -> str:
    return str(loaded.tokenizer.decode([token]))
