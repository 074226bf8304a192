"""A teacher in this process that says its signals, and the check of stored ones against it.

Shape legend: B batch, L length, N labelled positions, K teacher hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmdistill.errors import TrainingError
from lmdistill.models import last_hidden, output_head
from lmdistill.recipe import SignalSpec
from lmdistill.signals.codec import Array
from lmdistill.signals.engine import Ask
from lmdistill.signals.kinds import Kind, load_kind
from lmdistill.signals.store import SignalStore, StoredRow, TrainingSequence
from lmdistill.signals.teller import Payload, Speech, Teller
from lmdistill.signals.types import HiddenSignal


class LocalEngine:
    """Asks a model in this process."""

    def __init__(
        self, model: PreTrainedModel, vocabulary_size: int, spec: SignalSpec, tables: dict[str, Array] | None = None
    ) -> None:
        """`tables` holds `student_head` (and `student_bias`) for the kind `head_expectation`."""
        self.model = model.eval().requires_grad_(False)
        self.spec = spec
        self.head = output_head(model, vocabulary_size)
        self.teller = Teller(spec, self.head, tables)

    def tell(
        self,
        sequences: Sequence[TrainingSequence],
        seeds: Sequence[int],
        told: Callable[[int], None] = lambda tokens: None,
    ) -> list[Payload]:
        """What the teacher says at the labelled positions of each sequence. Raises TrainingError for NaN logits."""
        found: dict[int, Payload] = {}
        for places, hidden_BLK in self._hidden(sequences):
            said = [self._labelled(sequences[p], hidden_LK) for p, hidden_LK in zip(places, hidden_BLK, strict=True)]
            if self.spec.kind in ("sampled", "top_and_sampled"):  # draws are seeded sequence by sequence
                payloads = [self.teller(Speech(*s, seeds[p])) for p, s in zip(places, said, strict=True)]
            else:  # one large product with the head is faster than many small ones
                states_NK, targets_N = (torch.cat(parts) for parts in zip(*said, strict=True))
                ends = np.cumsum([len(targets) for _, targets in said])[:-1]
                whole = self.teller(Speech(states_NK, targets_N, 0))
                cut = {name: np.split(array, ends) for name, array in whole.items()}
                payloads = [{name: parts[row] for name, parts in cut.items()} for row in range(len(places))]
            found.update(zip(places, payloads, strict=True))
            told(sum(len(sequences[place].input_ids_L) for place in places))
        return [found[place] for place in range(len(sequences))]

    def tell_all(
        self, asks: Iterable[Ask], told: Callable[[int], None] = lambda tokens: None
    ) -> Generator[list[Payload], None, None]:
        """One ask after the other, each when it is wanted."""
        for ask in asks:
            yield self.tell(ask.sequences, ask.seeds, told)

    def close(self) -> None:
        """Nothing: the model is whose it was before."""

    def _labelled(self, sequence: TrainingSequence, hidden_LK: Tensor) -> tuple[Tensor, Tensor]:
        """The states and next tokens of a sequence's labelled positions."""
        labelled_L = torch.as_tensor(sequence.labelled_L)
        targets_L = torch.as_tensor(np.append(sequence.input_ids_L[1:], 0)).long()
        states_NK = hidden_LK[: len(labelled_L)][labelled_L.to(hidden_LK.device)]
        if not torch.isfinite(states_NK).all():
            raise TrainingError(
                f"the teacher's hidden states are not finite for {', '.join(sequence.row_ids[:8])}; nothing of this "
                "shard was written, earlier shards are intact. Load the teacher in float32 (teacher.dtype) or leave "
                "these rows out"
            )
        return states_NK, targets_L[labelled_L]

    @torch.no_grad()
    def _hidden(self, sequences: Sequence[TrainingSequence]) -> Iterator[tuple[list[int], Tensor]]:
        """Last hidden states, longest sequences first, so that padding is least."""
        for places in batches_of(sequences, self.spec.batch_tokens):
            longest = len(sequences[places[0]].input_ids_L)
            ids_BL = torch.zeros(len(places), longest, dtype=torch.long)
            positions_BL = torch.zeros_like(ids_BL)
            for row, place in enumerate(places):
                columns = sequences[place].columns()
                end = len(columns["input_ids"])
                ids_BL[row, :end] = torch.as_tensor(columns["input_ids"])
                positions_BL[row, :end] = torch.as_tensor(columns["position_ids"])
                positions_BL[row, end:] = torch.arange(longest - end)  # padding is one packed row more
            batch = {"input_ids": ids_BL, "position_ids": positions_BL}
            yield places, last_hidden(self.model, {name: x.to(self.model.device) for name, x in batch.items()})


def batches_of(sequences: Sequence[TrainingSequence], batch_tokens: int) -> list[list[int]]:
    """Places of the sequences of each batch: longest first, so many tokens at a time."""
    order = sorted(range(len(sequences)), key=lambda place: (-len(sequences[place].input_ids_L), place))
    batches = []
    while order:
        count = max(1, batch_tokens // len(sequences[order[0]].input_ids_L))
        batches.append(order[:count])
        order = order[count:]
    return batches


@dataclass(frozen=True)
class Fidelity:
    """How far stored signals are from the teacher's own."""

    rows: int
    positions: int
    kl: float | None
    """Mean KL(exact || stored) in nats, the tail spread evenly; None for kinds whose estimate is not a distribution of
    full support."""
    relative_error: float
    """Root of the mean squared error of what is stored over that of the thing itself: of the probabilities, of the
    mean head row (`head_expectation`), of the log-probability (`token`)."""
    covered: float | None
    """Mean probability of the stored ids."""


@torch.no_grad()
def check_rows(store: SignalStore, rows: Sequence[StoredRow], engine: LocalEngine) -> Fidelity:
    """Compute the teacher's distributions of some rows of one source again and compare what the store says of them."""
    source = store.source_of(rows[0].key)
    tables = store.tables(store.manifest.sources.index(source))
    kind = load_kind(SignalSpec.model_validate(source.signal), tables)
    found: list[_Comparison] = []
    for places, hidden_BLK in engine._hidden([row.sequence for row in rows]):
        for place, hidden_LK in zip(places, hidden_BLK, strict=True):
            row = rows[place]
            labelled_L = torch.as_tensor(row.sequence.labelled_L)
            exact_NV = engine.teller.logits(hidden_LK[: len(labelled_L)][labelled_L]).log_softmax(-1).cpu()
            payload = kind.unpack(row.signal, len(exact_NV))
            if "rows" in payload:
                own = exact_NV.exp() @ torch.as_tensor(tables["student_head"]).float()
                found.append(_Comparison.of(own, torch.as_tensor(payload["rows"])))
            elif "ids" not in payload and "logprobs" in payload:
                targets_N = torch.as_tensor(row.sequence.input_ids_L[1:][row.sequence.loss_mask_L[1:]]).long()
                own = exact_NV.gather(1, targets_N[:, None])[:, 0]
                found.append(_Comparison.of(own, torch.as_tensor(payload["logprobs"])))
            else:
                found.append(_compare_distributions(kind, payload, exact_NV))
    kls = [value for part in found for value in part.kl_N]
    covered = [value for part in found for value in part.covered_N]
    return Fidelity(
        rows=len(rows),
        positions=sum(row.sequence.positions for row in rows),
        kl=float(np.mean(kls)) if kls else None,
        relative_error=float(sum(p.error for p in found) / max(sum(p.size for p in found), 1e-30)) ** 0.5,
        covered=float(np.mean(covered)) if covered else None,
    )


@dataclass(frozen=True)
class _Comparison:
    """Squared error and squared size of one sequence's numbers, and what is known position by position."""

    error: float
    size: float
    kl_N: list[float] = field(default_factory=list)
    covered_N: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, own: Tensor, stored: Tensor) -> _Comparison:
        return cls(float((own - stored).square().sum()), float(own.square().sum()))


def _compare_distributions(kind: Kind, payload: Payload, exact_NV: Tensor) -> _Comparison:
    stored_NV, full = dense_distribution(kind, payload, exact_NV.shape[1])
    plain = _Comparison.of(exact_NV.exp(), stored_NV)
    kl_N: list[float] = []
    covered_N: list[float] = []
    if full:
        kl_N = (exact_NV.exp() * (exact_NV - stored_NV.clamp_min(1e-30).log())).sum(-1).tolist()
    if "ids" in payload:
        covered_N = (exact_NV.exp() * (stored_NV > 0)).sum(-1).tolist() if not full else _kept(payload, exact_NV)
    return _Comparison(plain.error, plain.size, kl_N, covered_N)


def _kept(payload: Payload, exact_NV: Tensor) -> list[float]:
    filled_Nk = torch.as_tensor(payload["logprobs"] > -np.inf)
    kept_Nk = exact_NV.exp().gather(1, torch.as_tensor(payload["ids"]).long()) * filled_Nk
    return list(kept_Nk.sum(-1).tolist())


def dense_distribution(kind: Kind, payload: Payload, vocabulary_size: int) -> tuple[Tensor, bool]:
    """What an unpacked signal says of the whole vocabulary, (N, V), and whether it has full support.

    The tail of `top_k` and `top_p` is spread evenly; draws stand for themselves. For measuring only: training never
    makes this tensor.
    """
    signal = kind.signal({name: torch.as_tensor(array) for name, array in payload.items()})
    if isinstance(signal, HiddenSignal):
        logits_NV = signal.hidden_NK @ signal.head_VK.T + (0 if signal.bias is None else signal.bias)
        if signal.softcap is not None:
            logits_NV = signal.softcap * torch.tanh(logits_NV * signal.logit_scale / signal.softcap)
        else:
            logits_NV = logits_NV * signal.logit_scale
        return logits_NV.softmax(-1), True
    ids_Nk = torch.as_tensor(payload["ids"]).long()
    dense_NV = torch.zeros(len(ids_Nk), vocabulary_size)
    if "counts" in payload:
        share_Nk = torch.as_tensor(payload["counts"])
        share_Nk = share_Nk / share_Nk.sum(-1, keepdim=True).clamp_min(1e-30)
        return dense_NV.scatter_add_(1, ids_Nk, share_Nk), False
    kept_Nk = torch.as_tensor(payload["logprobs"]).exp()
    dense_NV.scatter_add_(1, ids_Nk, kept_Nk)
    empty_NV = dense_NV == 0
    rest_N1 = (1 - dense_NV.sum(-1, keepdim=True)).clamp_min(0) / empty_NV.sum(-1, keepdim=True).clamp_min(1)
    return dense_NV + empty_NV * rest_N1, True
