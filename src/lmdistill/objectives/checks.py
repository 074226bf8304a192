"""What a call of the loss engine must satisfy; each error shows both numbers and the next step.

Depends on torch alone. Shape legend: N tokens, M unmasked tokens, V vocabulary, H student hidden, K teacher hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lmdistill.objectives.divergences import Divergence
from lmdistill.objectives.rows import LogitsView
from lmdistill.objectives.surrogate import PolicyTerm
from lmdistill.signals.types import (
    DenseSignal,
    HeadExpectationSignal,
    HiddenSignal,
    SampledSignal,
    Signal,
    TokenSignal,
    TopKSignal,
)


def common_vocabulary(head_VH: Tensor, signal: Signal | None, vocab_size: int | None) -> int:
    """The number of real ids, checked against both models."""
    rows = {"the student's head": head_VH.shape[0]}
    if isinstance(signal, HiddenSignal):
        rows["the teacher's head"] = signal.head_VK.shape[0]
    if isinstance(signal, DenseSignal):
        rows["the teacher's logits"] = signal.logits_NV.shape[1]
    if vocab_size is None:
        if len(set(rows.values())) > 1:
            shown = " and ".join(f"{name} {count}" for name, count in rows.items())
            raise ValueError(f"vocabularies differ ({shown} entries); pass vocab_size=, the tokenizer's number of ids")
        return head_VH.shape[0]
    for name, count in rows.items():
        if not 1 <= vocab_size <= count:
            raise ValueError(
                f"vocab_size = {vocab_size} but {name} has {count} entries; it must lie between 1 and that"
            )
    return vocab_size


def check_shapes(
    hidden_NH: Tensor,
    head_VH: Tensor,
    bias_V: Tensor | None,
    signal: Signal | None,
    rows: Mapping[str, Tensor | None],
) -> None:
    """Everything that would otherwise fail deep inside, or not at all."""
    if hidden_NH.ndim != 2 or head_VH.ndim != 2 or hidden_NH.shape[1] != head_VH.shape[1]:
        raise ValueError(
            f"student_hidden_NH {tuple(hidden_NH.shape)} and student_head_VH {tuple(head_VH.shape)} must be (N, H) "
            "and (V, H) with one H; flatten batch and length first"
        )
    for name, tensor in {"signal": signal, **rows}.items():
        if tensor is not None and len(tensor) != len(hidden_NH):
            raise ValueError(f"{len(hidden_NH)} student tokens but {len(tensor)} rows in {name}; they go in pairs")
    heads = [("student_bias", bias_V, head_VH)]
    if isinstance(signal, HiddenSignal):
        heads.append(("the teacher's bias", signal.bias, signal.head_VK))
    for name, bias, head in heads:
        if bias is not None and bias.shape != head.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(bias.shape)} but its head {tuple(head.shape)}; one number a row")


def check_terms(
    signal: Signal | None,
    labels_N: Tensor | None,
    label_weight: float,
    temperature: float,
    policy: PolicyTerm | None = None,
) -> None:
    """Something is trained on, at a temperature that exists."""
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0")
    if label_weight and labels_N is None:
        raise ValueError(f"label_weight = {label_weight} needs labels_N, the text's next tokens")
    if policy is not None and labels_N is None:
        raise ValueError("a policy term needs labels_N, the tokens that its advantages belong to")
    if policy is not None and policy.temperature != 1 and (signal is not None or label_weight):
        raise ValueError(
            f"the policy term's temperature is {policy.temperature}, but the terms beside it are of plain "
            "log-probabilities; use temperature 1, or train it in a call of its own"
        )
    if signal is None and not label_weight and policy is None:
        raise ValueError("neither a signal nor a label_weight nor a policy term: there is nothing to train on")


def check_setting(setting_N: Tensor | None, definition: Divergence, index_M: Tensor) -> None:
    """Only some divergences have a parameter that may differ by token, and it lies between 0 and 1."""
    if setting_N is None:
        return
    name = definition.token_parameter
    if name is None:
        raise ValueError(f"{definition.name} has no parameter that may differ from token to token; leave out setting_N")
    if len(index_M) == 0:
        return
    low, high = (float(end) for end in setting_N[index_M].aminmax())
    if not (low > 0 and high < 1):  # NaN too
        raise ValueError(
            f"{definition.name}: setting_N, its {name} by token, lies between {low} and {high} at trained tokens; it "
            "must lie strictly between 0 and 1"
        )


def check_ids(signal: Signal | None, labels_N: Tensor | None, index_M: Tensor, vocabulary: int) -> None:
    """Ids outside the vocabulary fail deep inside on a processor, and kill the process on a GPU."""
    named = {"labels_N": labels_N}
    if isinstance(signal, TopKSignal | SampledSignal):
        named["ids_Nk"] = signal.ids_Nk
    if isinstance(signal, TokenSignal):
        named["ids_N"] = signal.ids_N
    for name, ids in named.items():
        if ids is None or ids[index_M].numel() == 0:
            continue
        low, high = (int(end) for end in ids[index_M].aminmax())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"{name} holds the id {low if low < 0 else high} at a trained token but the vocabulary has "
                f"{vocabulary} entries; mask that token out or repair its id"
            )


def check_fit(
    signal: Signal | None,
    definition: Divergence,
    temperature: float,
    view: LogitsView,
    head_VH: Tensor,
    bias_V: Tensor | None,
) -> None:
    """Refuse a divergence or temperature that the signal cannot give without bias."""
    name = type(signal).__name__
    possible = {
        SampledSignal: ("forward_kl",),
        TokenSignal: ("forward_kl", "reverse_kl"),
        HeadExpectationSignal: ("forward_kl",),
    }.get(type(signal))
    if possible is not None and definition.name not in possible:
        raise ValueError(
            f"{definition.name} cannot be estimated without bias from a {name}; it gives {' or '.join(possible)}. "
            "Use a HiddenSignal, DenseSignal or TopKSignal"
        )
    stored = getattr(signal, "temperature", 1.0)
    renormalised = isinstance(signal, TopKSignal) and signal.tail == "renormalise"
    softens_freely = signal is None or isinstance(signal, HiddenSignal | DenseSignal) or renormalised
    if not softens_freely and temperature != stored:
        raise ValueError(
            f"temperature = {temperature} but the {name} holds probabilities at temperature {stored}; "
            "what lies beyond the stored ids cannot be softened: use that temperature or tail='renormalise'"
        )
    if isinstance(signal, HeadExpectationSignal):
        if head_VH.requires_grad:
            raise ValueError("a HeadExpectationSignal belongs to a frozen head; call head.requires_grad_(False)")
        if view.softcap is not None:
            raise ValueError(f"a HeadExpectationSignal needs linear logits; softcap = {view.softcap} bends them")
        if bias_V is not None and (bias_V.requires_grad or signal.bias_N is None):
            raise ValueError(
                "a student head with a bias must be frozen too, and the HeadExpectationSignal needs bias_N"
            )
