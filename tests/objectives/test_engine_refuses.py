"""Wrong inputs raise ValueError with both numbers and the next step, before any work is done."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from problems import make

from lmdistill.objectives import distillation_loss
from lmdistill.signals import DenseSignal, HeadExpectationSignal, HiddenSignal, SampledSignal, TokenSignal, TopKSignal

PROBLEM = make(60)
IDS = torch.zeros(6, 2, dtype=torch.long)
LOG = torch.full((6, 2), -1.0)
FROZEN = HeadExpectationSignal(torch.zeros(6, 5))


def call(signal: Any = PROBLEM.signal, kind: str = "forward_kl", **options: Any) -> None:
    hidden, head = options.pop("hidden", PROBLEM.hidden_NH), options.pop("head", PROBLEM.head_VH)
    distillation_loss(hidden, head, signal, kind, **options)


CASES: list[tuple[dict[str, Any], str]] = [
    ({"hidden": torch.zeros(2, 3, 5)}, "(2, 3, 5) and student_head_VH (13, 5) must be (N, H)"),
    ({"head": torch.zeros(13, 4)}, "(6, 5) and student_head_VH (13, 4)"),
    ({"signal": DenseSignal(torch.zeros(5, 13))}, "6 student tokens but 5 rows in signal"),
    ({"mask_N": torch.ones(7)}, "6 student tokens but 7 rows in mask_N"),
    ({"weight_N": torch.ones(4)}, "6 student tokens but 4 rows in weight_N"),
    ({"labels_N": torch.ones(9), "label_weight": 0.5}, "6 student tokens but 9 rows in labels_N"),
    ({"student_bias": torch.zeros(12)}, "student_bias has shape (12,) but its head (13, 5)"),
    ({"signal": HiddenSignal(PROBLEM.teacher_NK, PROBLEM.teacher_VK, torch.zeros(3))}, "(3,) but its head (13, 4)"),
    ({"signal": DenseSignal(torch.zeros(6, 16))}, "the student's head 13 and the teacher's logits 16 entries"),
    ({"vocab_size": 14}, "vocab_size = 14 but the student's head has 13 entries"),
    ({"vocab_size": 0}, "vocab_size = 0"),
    ({"temperature": 0.0}, "temperature = 0.0 must be above 0"),
    ({"temperature": float("nan")}, "temperature = nan must be above 0"),
    ({"logit_scale": 0.0}, "logit_scale = 0.0 must be above 0"),
    ({"softcap": -1.0}, "softcap = -1.0 must be above 0"),
    ({"label_weight": 0.5}, "label_weight = 0.5 needs labels_N"),
    ({"signal": None}, "nothing to train on"),
    (
        {"labels_N": torch.tensor([0, 1, -100, 3, 4, 5]), "label_weight": 1.0},
        "labels_N holds the id -100 at a trained token but the vocabulary has 13 entries",
    ),
    ({"signal": TopKSignal(IDS + 13, LOG)}, "ids_Nk holds the id 13 at a trained token but the vocabulary has 13"),
    ({"signal": SampledSignal(IDS - 1, IDS + 1)}, "ids_Nk holds the id -1"),
    ({"signal": TokenSignal(IDS[:, 0] + 99, LOG[:, 0])}, "ids_N holds the id 99"),
    (
        {"signal": SampledSignal(IDS, IDS + 1), "kind": "jsd"},
        "jsd cannot be estimated without bias from a SampledSignal",
    ),
    ({"signal": TokenSignal(IDS[:, 0], LOG[:, 0]), "kind": "jsd"}, "it gives forward_kl or reverse_kl"),
    ({"signal": FROZEN, "kind": "reverse_kl"}, "reverse_kl cannot be estimated without bias from a HeadExpectation"),
    (
        {"signal": TopKSignal(IDS, LOG), "temperature": 2.0},
        "temperature = 2.0 but the TopKSignal holds probabilities at",
    ),
    ({"signal": TokenSignal(IDS[:, 0], LOG[:, 0]), "temperature": 2.0}, "temperature = 2.0 but the TokenSignal"),
    ({"signal": SampledSignal(IDS, IDS + 1, temperature=2.0)}, "temperature = 1.0 but the SampledSignal"),
    ({"signal": FROZEN, "head": PROBLEM.head_VH.clone().requires_grad_()}, "call head.requires_grad_(False)"),
    ({"signal": FROZEN, "softcap": 30.0}, "softcap = 30.0 bends them"),
    (
        {"signal": FROZEN, "student_bias": torch.zeros(13)},
        "must be frozen too, and the HeadExpectationSignal needs bias_N",
    ),
    ({"kind": "forward"}, "no divergence is named 'forward'"),
]


@pytest.mark.parametrize(("options", "message"), CASES, ids=[message for _, message in CASES])
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(**options)


def test_ids_of_masked_tokens_may_be_anything() -> None:
    mask_N = torch.tensor([1, 1, 0, 1, 1, 1])
    ids = IDS.clone()
    ids[2] = -100
    call(TopKSignal(ids, LOG), mask_N=mask_N)
    call(labels_N=torch.tensor([0, 1, -100, 3, 4, 5]), label_weight=1.0, mask_N=mask_N)
