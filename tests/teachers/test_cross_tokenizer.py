"""From a batch of the student's tokens to the loss of a teacher with another tokenizer, against models row by row."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cross_helpers import make, translator
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lmdistill.data import Collator
from lmdistill.errors import DataError
from lmdistill.models import last_hidden, output_head
from lmdistill.objectives.alignment import pair_positions
from lmdistill.objectives.dual_space import ModelSide, dual_space_loss
from lmdistill.signals import TokenSignal, TopKSignal
from lmdistill.teachers.cross_objective import CrossTokenizerObjective, find_objective
from lmdistill.teachers.cross_tokenizer import CrossTokenizerTeacher, TeacherReading, aligned_loss
from lmdistill.teachers.translated_batch import translate_batch

TEXTS = ["The quick brown fox jumps", "naïve 漢 🐻!", "Be kind and brief. Yes.", "user assistant system"]
KINDS = ["uld", "gold", "alm", "dskd"]


def model(vocabulary: int, seed: int, width: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    made = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(8)
    return made


STUDENT = "chatml"


@pytest.fixture(scope="module")
def student() -> LlamaForCausalLM:
    return model(translator(STUDENT, "gemma").student.size, 0, 16)


@pytest.fixture(scope="module")
def teacher_model() -> LlamaForCausalLM:
    # Rows beyond the tokenizer's ids: padding, which takes no probability.
    return model(translator(STUDENT, "gemma").teacher.size + 5, 1, 20)


def rows(kind: str = STUDENT) -> list[dict[str, Any]]:
    """Texts as packed rows; the first two in one sequence, a prompt of two tokens in each untrained."""
    table = translator(kind, "gemma").student
    packed: list[dict[str, Any]] = []
    for texts in (TEXTS[:2], TEXTS[2:3], TEXTS[3:]):
        ids, labels, positions = [], [], []
        for text in texts:
            own = [*table.lead_ids, *table.encode(text).ids_L.tolist(), int(table.tokenizer.eos_token_id)]
            ids += own
            labels += [-100, -100, *own[2:]]
            positions += range(len(own))
        packed.append({"input_ids": ids, "labels": labels, "position_ids": positions, "row_ids": ["x"]})
    return packed


def make_batch(kind: str = STUDENT) -> dict[str, Any]:
    return Collator()(rows(kind))


def one_by_one(packed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every text alone in a batch."""
    alone = []
    for row in packed:
        starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
        for first, end in pairwise([*starts, len(row["input_ids"])]):
            columns = ("input_ids", "labels", "position_ids")
            alone.append(Collator()([{"row_ids": ["x"], **{name: row[name][first:end] for name in columns}}]))
    return alone


def loss_of(
    teacher: CrossTokenizerTeacher, student: LlamaForCausalLM, batch: dict[str, Any], **options: Any
) -> tuple[Tensor, Tensor]:
    hidden = last_hidden(student, {name: batch[name] for name in ("input_ids", "position_ids")})
    head = output_head(student, translator(STUDENT, "gemma").student.size)
    embeddings = student.get_input_embeddings().weight
    return teacher.aligned_loss(hidden, head, batch, student_embeddings_VH=embeddings, **options)


def teacher_for(kind: str, teacher_model: LlamaForCausalLM, **parameters: Any) -> CrossTokenizerTeacher:
    torch.manual_seed(2)
    made = CrossTokenizerTeacher(
        teacher_model, translator(STUDENT, "gemma"), CrossTokenizerObjective(kind, **parameters), student_width=16
    )
    if made.projectors is not None:
        made.projectors.double()
    return made


def test_the_teacher_reads_every_packed_row_as_if_alone(teacher_model: LlamaForCausalLM) -> None:
    teacher = teacher_for("gold", teacher_model)
    packed = teacher.read(make_batch())
    assert packed.hidden_MK is not None
    places = packed.text.row_G
    for number, alone in enumerate(one_by_one(rows())):
        reading = teacher.read(alone)
        assert reading.hidden_MK is not None
        groups, own = packed.text.alignment.select(places == number), reading.text.alignment
        assert torch.equal(groups.student_sizes, own.student_sizes)
        shift = int(groups.teacher_first_G[0] - own.teacher_first_G[0])
        length = reading.text.inputs["input_ids"].shape[1]
        torch.testing.assert_close(packed.hidden_MK[shift : shift + length], reading.hidden_MK)
        ids = reading.text.teacher_ids
        assert ids[0] == make("gemma").bos_token_id
        logits = teacher_model(ids[None]).logits[0, :, : teacher.head.vocabulary_size]
        head = output_head(teacher_model, teacher.head.vocabulary_size)
        found = (reading.hidden_MK @ head.weight_VH.T)[:, : head.vocabulary_size]
        torch.testing.assert_close(found, logits)


def test_only_whole_groups_of_trained_tokens_count(teacher_model: LlamaForCausalLM) -> None:
    batch = make_batch()
    text = translate_batch(translator(STUDENT, "gemma"), batch)
    trained = batch["labels"].flatten() != -100
    kept = text.trained()
    counted = torch.zeros_like(trained)
    for first, end in zip(kept.student_first_G.tolist(), kept.student_end_G.tolist(), strict=True):
        assert trained[first:end].all()
        counted[first:end] = True
    assert 0 < int(counted.sum()) <= int(trained.sum()) == text.trained_tokens
    assert text.trained_share == pytest.approx(float(counted.sum()) / float(trained.sum()))
    left = (trained & ~counted).nonzero()[:, 0].tolist()
    before = text.alignment
    for place in left:  # only where a group begins in the prompt
        group = int(((before.student_first_G <= place) & (place < before.student_end_G)).nonzero()[0])
        assert not trained[int(before.student_first_G[group])]


def alm(student: LlamaForCausalLM, teacher_model: LlamaForCausalLM, alone: dict[str, Any]) -> list[Tensor]:
    """Coins of every trained group of one text, from whole logits."""
    text = translate_batch(translator(STUDENT, "gemma"), alone)
    kept = text.trained()
    s_ids, t_ids = alone["input_ids"][0], text.teacher_ids
    own = translator(STUDENT, "gemma")
    s = student(s_ids[None]).logits[0, :, : own.student.size].log_softmax(-1)
    t = teacher_model(t_ids[None]).logits[0, :, : own.teacher.size].log_softmax(-1).detach()
    losses = []
    for i0, i1, j0, j1 in zip(
        kept.student_first_G, kept.student_end_G, kept.teacher_first_G, kept.teacher_end_G, strict=True
    ):
        p = (sum(s[i - 1, s_ids[i]] for i in range(i0, i1)) / 100 - 1e-6).exp()  # type: ignore[call-overload]
        q = (sum(t[j - 1, t_ids[j]] for j in range(j0, j1)) / 100 - 1e-6).exp()  # type: ignore[call-overload]
        losses.append(-(q * p.log() + (1 - q) * (1 - p).log()))
    return losses


def uld(student: LlamaForCausalLM, teacher_model: LlamaForCausalLM, alone: dict[str, Any]) -> list[Tensor]:
    text = translate_batch(translator(STUDENT, "gemma"), alone)
    pairs = pair_positions(text.alignment, text.mask_G)
    own = translator(STUDENT, "gemma")
    s = student(alone["input_ids"]).logits[0, :, : own.student.size].softmax(-1)
    t = teacher_model(text.inputs["input_ids"]).logits[0, :, : own.teacher.size].softmax(-1).detach()
    losses = []
    for i, j in zip(pairs.student_first_G.tolist(), pairs.teacher_first_G.tolist(), strict=True):
        a = F.pad(s[i - 1].sort(descending=True).values, (0, t.shape[1] - s.shape[1]))
        losses.append((a - t[j - 1].sort(descending=True).values).abs().sum())
    return losses


@pytest.mark.parametrize(("kind", "naive"), [("alm", alm), ("uld", uld)])
def test_equals_models_asked_row_by_row(
    kind: str, naive: Any, student: LlamaForCausalLM, teacher_model: LlamaForCausalLM
) -> None:
    student.zero_grad()
    loss, token_loss_BL = loss_of(teacher_for(kind, teacher_model), student, make_batch(), num_items=7)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    losses = [one for alone in one_by_one(rows()) for one in naive(student, teacher_model, alone)]
    whole = torch.stack(losses).sum() / 7
    whole.backward()
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(token_loss_BL.sum() / 7, whole.detach())
    assert int((token_loss_BL != 0).sum()) == len(losses)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


@pytest.mark.parametrize("parameters", [{}, {"hybrid": False}, {"merge": "last", "teacher_weight": 0.0}])
def test_gold_of_a_packed_batch_is_that_of_its_rows(
    parameters: dict[str, Any], student: LlamaForCausalLM, teacher_model: LlamaForCausalLM
) -> None:
    teacher = teacher_for("gold", teacher_model, **parameters)
    whole, token_loss_BL = loss_of(teacher, student, make_batch(), num_items=7)
    parts = [loss_of(teacher, student, alone, num_items=7)[0] for alone in one_by_one(rows())]
    torch.testing.assert_close(whole, torch.stack(parts).sum())
    torch.testing.assert_close(token_loss_BL.sum() / 7, whole.detach())


def test_dskd_gets_the_states_of_each_row(student: LlamaForCausalLM, teacher_model: LlamaForCausalLM) -> None:
    """As if the texts were read one by one and laid behind each other."""
    teacher = teacher_for("dskd", teacher_model)
    projectors = teacher.projectors
    assert projectors is not None
    loss, token_loss_BL = loss_of(teacher, student, make_batch(), num_items=7)
    own = translator(STUDENT, "gemma")
    hidden: list[list[Tensor]] = [[], []]
    ids: list[list[Tensor]] = [[], []]
    sequences = []
    at = [0, 0]
    for alone in one_by_one(rows()):
        text = translate_batch(own, alone)
        sides = ((student, alone["input_ids"]), (teacher_model, text.inputs["input_ids"]))
        for place, (reader, tokens) in enumerate(sides):
            hidden[place].append(last_hidden(reader, {"input_ids": tokens})[0])
            ids[place].append(tokens[0])
        ((s, t),) = text.sequences()
        sequences.append((s + at[0], t + at[1]))
        at = [at[0] + alone["input_ids"].shape[1], at[1] + text.inputs["input_ids"].shape[1]]
    sides = [
        ModelSide(
            torch.cat(states),
            torch.cat(tokens),
            reader.lm_head.weight,
            reader.model.embed_tokens.weight,
            vocab_size=size,
        )
        for states, tokens, reader, size in zip(
            hidden, ids, (student, teacher_model), (own.student.size, own.teacher.size), strict=True
        )
    ]
    whole = dual_space_loss(projectors, *sides, sequences, num_items=7)
    torch.testing.assert_close(loss, whole.loss)
    assert float(token_loss_BL.sum()) == pytest.approx(float(whole.token_loss_N.sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_learns_and_the_teacher_stays(
    kind: str, student: LlamaForCausalLM, teacher_model: LlamaForCausalLM
) -> None:
    learner = model(translator(STUDENT, "gemma").student.size, 5, 16).train()
    parameters = {"difference": "binary_forward_kl"} if kind == "alm" else {}
    teacher = teacher_for(kind, teacher_model, **parameters)
    before = {name: tensor.clone() for name, tensor in teacher_model.state_dict().items()}
    trained = [*learner.parameters(), *(teacher.projectors.parameters() if teacher.projectors else [])]
    optimiser = torch.optim.Adam(trained, lr=5e-3)
    losses = []
    for _ in range(8):
        loss, _ = loss_of(teacher, learner, make_batch())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.98 * losses[0]
    for name, tensor in teacher_model.state_dict().items():
        assert torch.equal(before[name], tensor)
    assert not any("proj" in name for name in learner.state_dict() if "t2s" in name)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_trained_costs_nothing(kind: str, student: LlamaForCausalLM, teacher_model: LlamaForCausalLM) -> None:
    batch = make_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    teacher = teacher_for(kind, teacher_model)
    loss, token_loss_BL = loss_of(teacher, student, batch)
    loss.backward()
    assert float(loss.detach()) == 0
    assert token_loss_BL.shape == batch["input_ids"].shape
    if teacher.projectors is not None:
        assert all(parameter.grad is not None for parameter in teacher.projectors.parameters())


def test_a_model_is_at_no_distance_from_itself(student: LlamaForCausalLM) -> None:
    """The same tokenizer and weights on both sides: one-to-one groups, all of the vocabulary matched."""
    own = translator(STUDENT, STUDENT)
    batch = make_batch()
    hidden = last_hidden(student, {name: batch[name] for name in ("input_ids", "position_ids")}).detach()
    head = output_head(student, own.student.size)
    for objective in (
        CrossTokenizerObjective("alm", difference="binary_forward_kl"),
        CrossTokenizerObjective("gold"),
        CrossTokenizerObjective("uld"),
    ):
        teacher = CrossTokenizerTeacher(student, own, objective)
        reading = teacher.read(batch)
        assert reading.text.alignment.one_to_one.all()
        assert reading.text.trained_share == 1
        loss, _ = teacher.aligned_loss(hidden, head, batch)
        assert float(loss.detach()) == pytest.approx(0, abs=1e-9)
    student.requires_grad_(True)


def test_stored_log_probabilities_give_the_loss_of_the_live_teacher(
    student: LlamaForCausalLM, teacher_model: LlamaForCausalLM
) -> None:
    """Rows as the store keeps them: row t speaks of token t + 1."""
    teacher, batch = teacher_for("alm", teacher_model), make_batch()
    live, _ = loss_of(teacher, student, batch)
    text = translate_batch(teacher.translator, batch)
    logits = (
        teacher_model(**text.inputs, use_cache=False).logits.flatten(0, 1)[:, : teacher.head.vocabulary_size].detach()
    )
    logprobs = logits.log_softmax(-1)
    ids = text.teacher_ids
    following = F.pad(ids[1:], (0, 1))
    signals = {
        "token": TokenSignal(following, logprobs.gather(1, following[:, None])[:, 0]),
        "all": TopKSignal(*reversed(logprobs.topk(logprobs.shape[1]))),
        "few": TopKSignal(*reversed(logprobs.topk(40))),
    }
    hidden = last_hidden(student, {name: batch[name] for name in ("input_ids", "position_ids")})
    head = output_head(student, teacher.translator.student.size)
    for name, signal in signals.items():
        reading = TeacherReading.of_signal(text, signal)
        stored, _ = aligned_loss(teacher.objective, hidden, head, batch, reading)
        if name == "few":
            held = (signals["few"].ids_Nk[:-1] == ids[1:, None]).any(1)  # type: ignore[union-attr]
            kept = reading.text.trained()
            assert 0 < len(kept) < len(text.trained())
            for first, end in zip(kept.teacher_first_G.tolist(), kept.teacher_end_G.tolist(), strict=True):
                assert held[first - 1 : end - 1].all()
        else:
            torch.testing.assert_close(stored, live)
    with pytest.raises(ValueError, match=r"\d+ tokens of the teacher's but 3 rows of its signal"):
        TeacherReading.of_signal(text, TokenSignal(ids[:3], logprobs[:3, 0]))
    with pytest.raises(ValueError, match="only log-probabilities of the teacher's tokens are there"):
        aligned_loss(CrossTokenizerObjective("uld"), hidden, head, batch, TeacherReading(text, head=teacher.head))


def test_parameters_are_checked() -> None:
    assert CrossTokenizerObjective("alm").softness == 100
    assert find_objective("gold", {"teacher_weight": 1}).matched_divergence.name == "reverse_kl"
    assert find_objective("gold", {"teacher_weight": 0}).matched_divergence.name == "forward_kl"
    assert find_objective("gold").matched_divergence.name == "jsd"
    for kind, parameters, problem in (
        ("kl", {}, "kind = 'kl' is not known"),
        ("alm", {"merge": "last"}, "merge is no parameter of alm; it has difference, temperature"),
        ("alm", {"colour": 1}, "colour is no parameter of alm"),
        ("alm", {"temperature": 0}, "temperature = 0 must be above 0"),
        ("alm", {"difference": "kl"}, "difference = 'kl' is not known"),
        ("gold", {"merge": "both"}, "merge = 'both' is not known"),
        ("gold", {"teacher_weight": 2.0}, "teacher_weight = 2.0 must lie between 0 and 1"),
        ("gold", {"matched_weight": 1.0}, "give both matched_weight and unmatched_weight"),
        ("dskd", {"divergence": "kl"}, "kl"),
    ):
        with pytest.raises(ValueError, match=problem):
            find_objective(kind, parameters)  # type: ignore[arg-type]


def test_what_is_missing_is_said(student: LlamaForCausalLM, teacher_model: LlamaForCausalLM) -> None:
    batch = make_batch()
    hidden = last_hidden(student, {name: batch[name] for name in ("input_ids", "position_ids")})
    head = output_head(student, translator(STUDENT, "gemma").student.size)
    reading = teacher_for("gold", teacher_model).read(batch)
    for objective, problem in (
        (CrossTokenizerObjective("gold"), "give match, or hybrid = False"),
        (CrossTokenizerObjective("dskd"), "give projectors"),
        (CrossTokenizerObjective("alm"), "give TeacherReading.logprobs_M"),
    ):
        with pytest.raises(ValueError, match=problem):
            aligned_loss(objective, hidden, head, batch, reading)
    with pytest.raises(ValueError, match="give student_width"):
        CrossTokenizerTeacher(teacher_model, translator(STUDENT, "gemma"), CrossTokenizerObjective("dskd"))
    with pytest.raises(DataError, match="is it the other model's"):
        teacher_for("alm", teacher_model).read({**batch, "input_ids": batch["input_ids"] + 5000})
    assert replace(reading, head=None).hidden_MK is reading.hidden_MK
