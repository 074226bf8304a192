"""Several teachers: routed row by row, or mixed token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from teacher_helpers import V, assert_same, batch, by_definition, model, naive, rows, segments, student, trained
from torch import Tensor

from lmdistill.data import Collator
from lmdistill.errors import DataError, ModelError
from lmdistill.objectives import divergence
from lmdistill.recipe import ObjectiveSpec
from lmdistill.signals import HiddenSignal, TokenSignal
from lmdistill.teachers import LocalTeacher, MixedTeachers, Part, RoutedTeachers, Speech, teacher_columns, with_context
from lmdistill.training.objective import Objective


class Counting:
    """A teacher that remembers which texts it was asked about."""

    def __init__(self, teacher: Any) -> None:
        self.teacher = teacher
        self.asked: list[str] = []

    def speak(self, given: Any) -> Speech:
        self.asked += [name for names in given["row_ids"] for name in names]
        return self.teacher.speak(given)  # type: ignore[no-any-return]


def named(given: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The batch with a teacher for each packed row, by turns; the padding has none."""
    turn = iter(names * 100)
    return {**given, "teacher": [[next(turn) for _ in of_row] for of_row in given["row_ids"]]}


def expected(models: dict[str, Any], given: dict[str, Any]) -> Tensor:
    """log p of the named teacher at each position, (N, V)."""
    told = {name: naive(each, given) for name, each in models.items()}
    width = given["input_ids"].shape[1]
    log_NV = torch.zeros_like(next(iter(told.values())))
    for number, names in enumerate(given["teacher"]):
        mine = [(first, end) for row, first, end in segments(given) if row == number]
        for (first, end), name in zip(mine, names, strict=False):
            span = slice(number * width + first, number * width + end)
            log_NV[span] = told[name][span]
    return log_NV


def total(parts: tuple[Part, ...], log_t: Tensor, wanted: Tensor, kind: str) -> tuple[Any, Any]:
    """Loss and gradients summed over parts, and by definition."""
    mine, theirs = student(len(wanted)), student(len(wanted))
    loss = torch.zeros((), dtype=torch.float64)
    for part in parts:
        assert part.mask_N is not None
        loss = loss + divergence(mine[0], mine[1], part.signal, kind, mask_N=part.mask_N & wanted, num_items=7.0)
    true = by_definition(kind, (theirs[0] @ theirs[1].T).log_softmax(-1), log_t)[wanted].sum() / 7.0
    loss.backward()
    true.backward()
    return (loss, mine[0].grad, mine[1].grad), (true, theirs[0].grad, theirs[1].grad)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_rows_are_spoken_of_by_the_teacher_that_they_name(kind: str) -> None:
    given = named(batch(4), ["a", "b", "b"])
    models = {"a": model(1), "b": model(2, hidden=20), "idle": model(3)}
    teachers = {name: Counting(LocalTeacher(each, V)) for name, each in models.items()}
    speech = RoutedTeachers(teachers).speak(given)
    masks = torch.stack([part.mask_N for part in speech.parts if part.mask_N is not None])
    assert len(masks) == 2
    assert torch.equal(masks.sum(0), trained(given).long())
    found, true = total(speech.parts, expected(models, given), trained(given), kind)
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one, other, check_dtype=False)
    assert teachers["idle"].asked == []


def test_a_teacher_reads_only_the_rows_of_the_batch_that_need_it() -> None:
    given = batch(3)
    given["teacher"] = [["a"] * len(names) for names in given["row_ids"]]
    given["teacher"][1][1] = "b"
    given["labels"][2] = -100  # nothing is trained there
    teachers = {name: Counting(LocalTeacher(model(seed), V)) for name, seed in (("a", 1), ("b", 2))}
    speech = RoutedTeachers(teachers).speak(given)
    assert teachers["a"].asked == given["row_ids"][0] + given["row_ids"][1]
    assert teachers["b"].asked == given["row_ids"][1]
    found, true = total(speech.parts, expected({"a": model(1), "b": model(2)}, given), trained(given), "forward_kl")
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one, other, check_dtype=False)


def test_routes_hold_for_texts_of_the_teachers_own() -> None:
    plain = named(batch(3), ["b", "a"])
    plain["teacher"][0] = ["a"] * len(plain["teacher"][0])  # so that teacher b reads a part of the batch
    spans = {(number, first): end for number, first, end in segments(plain)}
    retold = []
    for number, names in enumerate(plain["row_ids"]):
        firsts = sorted(first for row, first in spans if row == number)[: len(names)]
        texts = [plain["input_ids"][number, first : spans[number, first]].tolist() for first in firsts]
        retold.append([with_context(text, 1, [50 + number, 7, place]) for place, text in enumerate(texts)])
    given = {**plain, **teacher_columns(plain, retold)}
    models = {"a": model(1), "b": model(2)}
    speech = RoutedTeachers({name: LocalTeacher(each, V) for name, each in models.items()}).speak(given)
    whole = {name: LocalTeacher(each, V).speak(given).parts[0] for name, each in models.items()}
    assert len(speech.parts) == 2
    for part, routed in zip(whole.values(), speech.parts, strict=True):  # parts come in the order of their first row
        assert isinstance(part.signal, HiddenSignal)
        assert isinstance(routed.signal, HiddenSignal)
        assert torch.equal(part.signal.head_VK, routed.signal.head_VK)
        mask = routed.mask_N
        assert mask is not None
        torch.testing.assert_close(routed.signal.hidden_NK[mask], part.signal.hidden_NK[mask])
    assert sum(int(part.mask_N.sum()) for part in speech.parts if part.mask_N is not None) == int(trained(given).sum())


def test_a_part_of_any_signal_is_put_in_its_place() -> None:
    class Own:
        """Says the token's own id, and minus its position as its log-probability."""

        def speak(self, given: Any) -> Speech:
            ids = given["input_ids"].roll(-1, 1).flatten()
            return Speech((Part(TokenSignal(ids, -given["position_ids"].flatten().double())),))

    given = batch(3)
    given["teacher"] = [[who] * 3 for who in ("other", "own", "other")]
    speech = RoutedTeachers({"own": Own(), "other": LocalTeacher(model(1), V)}).speak(given)
    (part,) = [part for part in speech.parts if isinstance(part.signal, TokenSignal)]
    assert isinstance(part.signal, TokenSignal)
    assert part.mask_N is not None
    mask = part.mask_N
    assert torch.equal(part.signal.ids_N[mask], given["input_ids"].roll(-1, 1).flatten()[mask])
    assert torch.equal(part.signal.logprobs_N[mask], -given["position_ids"].flatten().double()[mask])


def test_names_that_lead_nowhere_are_told_with_the_row() -> None:
    routed = RoutedTeachers({"maths": LocalTeacher(model(1), V), "code": LocalTeacher(model(2), V)})
    given = batch(2)
    with pytest.raises(DataError, match=r"no column 'teacher'.*code, maths"):
        routed.speak(given)
    with pytest.raises(DataError, match=r"doc0\.1: its teacher is 'law'; known are code, maths"):
        routed.speak(named(given, ["maths", "law"]))
    short = named(given, ["maths"])
    short["teacher"][1] = ["maths"]
    with pytest.raises(DataError, match=r"doc1\.1: its teacher is None"):
        routed.speak(short)


def test_nothing_trained_is_nothing_said() -> None:
    given = named(batch(2), ["a"])
    given["labels"][:] = -100
    assert RoutedTeachers({"a": LocalTeacher(model(1), V)}).speak(given).parts == ()


def teachers_of_all_kinds() -> tuple[list[Any], list[LocalTeacher]]:
    """Unequal widths, a bias, scaled logits, and padding in a head."""
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(4)
    cohere = CohereForCausalLM(
        CohereConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            logit_scale=0.0625,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    models = [model(1), model(2, hidden=24), cohere.double().eval()]
    biased = models[0]
    biased.lm_head.bias = torch.nn.Parameter(torch.randn(V, dtype=torch.float64))
    with torch.no_grad():
        models[2].lm_head.weight.mul_(300)
    return models, [LocalTeacher(each, V) for each in models]


@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.5], [1.0, 0.0, 1.0]], ids=["alike", "weighted", "one silent"])
def test_a_mixture_is_the_weighted_mean_of_log_probabilities(weights: list[float] | None) -> None:
    given = batch()
    models, teachers = teachers_of_all_kinds()
    share = torch.tensor(weights or [1.0] * 3, dtype=torch.float64)
    share = share / share.sum()
    mean = sum(w * naive(each, given) for w, each in zip(share, models, strict=True))
    assert isinstance(mean, Tensor)
    speech = MixedTeachers(teachers, weights).speak(given)
    assert speech.hidden_NK is None
    assert_same(speech.parts[0], mean.log_softmax(-1), trained(given), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gating", ["confidence", "most_confident"])
def test_gates_weigh_each_token_by_who_is_sure_of_it(gating: Any) -> None:
    given = batch()
    models, teachers = teachers_of_all_kinds()
    log_TNV = torch.stack([naive(each, given) for each in models])
    entropy_TN = -(log_TNV.exp() * log_TNV).sum(-1)
    prior_T = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    if gating == "confidence":
        weight_TN = (prior_T.log()[:, None] - entropy_TN / 0.7).softmax(0)
    else:
        weight_TN = torch.nn.functional.one_hot(entropy_TN.argmin(0), 3).T.double()
    assert len(weight_TN.argmax(0)[trained(given)].unique()) > 1  # not one teacher everywhere
    mean_NV = (weight_TN[..., None] * log_TNV).sum(0)
    mixed = MixedTeachers(teachers, prior_T.tolist(), gating=gating, gating_temperature=0.7, compiled=False)
    # The gate reads entropies in float32.
    assert_same(mixed.speak(given).parts[0], mean_NV.log_softmax(-1), trained(given), rtol=1e-4, atol=1e-6)


def test_the_padding_of_a_head_takes_no_part() -> None:
    given = batch()
    plain, padded = model(1), model(2, vocabulary=V + 3)
    mixed = MixedTeachers([LocalTeacher(plain, V), LocalTeacher(padded, V)])
    mean_NV = naive(plain, given) + naive(padded, given)[:, :V].log_softmax(-1)
    assert_same(mixed.speak(given).parts[0], (mean_NV / 2).log_softmax(-1), trained(given), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mixed", [False, True])
def test_no_padding_counts_in_training(mixed: bool) -> None:
    given, learner, padded = batch(), model(0, vocabulary=V + 3), model(1, vocabulary=V + 3)
    teacher = MixedTeachers([LocalTeacher(padded, V)]) if mixed else LocalTeacher(padded, V)
    spec = ObjectiveSpec.model_validate({"divergence": {"weight": 0.5}, "cross_entropy": {"weight": 0.5}})
    objective = Objective(spec, teacher=teacher, vocabulary_size=V, compiled=False)
    step = objective(learner, learner, given, None)
    log_s_NV, log_t_NV = (naive(each, given)[:, :V].log_softmax(-1) for each in (learner, padded))
    wanted_N = trained(given)
    kl_N = by_definition("forward_kl", log_s_NV, log_t_NV)[wanted_N]
    label_N = -log_s_NV.gather(1, given["input_ids"].roll(-1, 1).flatten()[:, None])[wanted_N, 0]
    torch.testing.assert_close(step.loss.detach(), (0.5 * kl_N + 0.5 * label_N).mean(), check_dtype=False)


def test_what_cannot_be_mixed_is_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    capped = LocalTeacher(Gemma2ForCausalLM(config), V)
    plain, other = LocalTeacher(model(1), V), LocalTeacher(model(2, vocabulary=V + 5), V + 5)
    with pytest.raises(ModelError, match=r"soft-caps its logits at 30\.0: they are not linear"):
        MixedTeachers([plain, capped])
    with pytest.raises(ModelError, match=f"vocabularies have {V} and {V + 5} ids"):
        MixedTeachers([plain, other])
    with pytest.raises(ModelError, match=f"head has {V} rows, but the vocabulary {V + 5} ids"):
        MixedTeachers([LocalTeacher(model(1), V + 5)])
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="2 teachers with weights"):
            MixedTeachers([plain, plain], weights)
    with pytest.raises(ValueError, match="gating_temperature = 0"):
        MixedTeachers([plain], gating="confidence", gating_temperature=0)


def test_a_mixture_may_be_one_of_the_routes() -> None:
    given = named(Collator()(rows(3)), ["all", "one"])
    one, two = model(1), model(2)
    mixed = MixedTeachers([LocalTeacher(one, V), LocalTeacher(two, V)], gating="most_confident", compiled=False)
    speech = RoutedTeachers({"all": mixed, "one": LocalTeacher(one, V)}).speak(given)
    assert sum(int(part.mask_N.sum()) for part in speech.parts if part.mask_N is not None) == int(trained(given).sum())
