"""Hints put together: terms equal the distances of what is caught, weights and gradients follow the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_models import MODELS, llama
from torch import Tensor

from lmdistill.errors import ModelError, RecipeError
from lmdistill.objectives.hints import HINTS, attention_kl, hidden_mse, relation_kl
from lmdistill.recipe import HintSpec, ObjectiveSpec
from lmdistill.teachers import LocalTeacher
from lmdistill.training.companions import KeptModule
from lmdistill.training.hints import HintSet
from lmdistill.training.objective import Objective
from lmdistill.training.positions import decoder_positions, encoder_positions

IDS = torch.randint(1, 64, (2, 8), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": torch.ones(1, 4, dtype=torch.long)}


def batch_of(**more: Any) -> dict[str, Any]:
    """Two packed texts in the first row; padding at the end of the second, as the collator makes it."""
    labels = IDS.clone()
    labels[1, 5:] = -100
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1, 2]])
    return {"input_ids": IDS, "labels": labels, "position_ids": positions, **more}


def small() -> Any:
    return llama(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, num_key_value_heads=1)


def specs(*values: Mapping[str, Any]) -> list[HintSpec]:
    return [HintSpec.model_validate(value) for value in values]


def listened(hints: HintSet, student: Any, teacher: Any) -> dict[str, Tensor]:
    batch = batch_of()
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    with hints.listening():
        with torch.no_grad():
            teacher(**inputs, use_cache=False)
        hints.feed()
        student(**inputs, use_cache=False)
    return hints.values(decoder_positions(batch))


def test_positions() -> None:
    found = decoder_positions(batch_of())
    assert found.segments_BL is not None
    assert found.segments_BL.tolist() == [[0] * 4 + [1] * 4, [0] * 5 + [-1] * 3]
    assert found.real_BL.sum().item() == 13
    assert found.trained_BL.tolist() == [[True] * 7 + [False], [True] * 4 + [False] * 4]
    assert found.chosen("first").nonzero().tolist() == [[0, 0], [1, 0]]
    other = batch_of(teacher_places=torch.full((2, 8), -1).index_fill_(1, torch.tensor([2]), 3))
    found = decoder_positions(other)
    assert found.trained_BL.nonzero().tolist() == [[0, 2], [1, 2]]
    assert found.of_teacher(torch.arange(20.0).view(2, 5, 2))[0, 2].tolist() == [6.0, 7.0]
    with pytest.raises(RecipeError, match="pairs of positions"):
        found.same_text()
    encoder = encoder_positions(torch.tensor([[1, 1, 0]]), torch.tensor([[-100, 2, -100]]))
    assert encoder.trained_BL.tolist() == [[False, True, False]]
    assert encoder.segments_BL is not None
    assert encoder.segments_BL.tolist() == [[0, 0, -1]]


def test_terms_are_the_distances_of_what_the_models_make() -> None:
    student, teacher = small(), llama(num_hidden_layers=4)
    hints = HintSet(
        specs(
            {"kind": "hidden_mse", "student": [1, 2], "teacher": [2, 4], "projector": {}, "positions": "all"},
            {"kind": "attention_kl", "student": [2], "teacher": [3], "parameters": {"heads": "mean"}},
            {"kind": "value_relation", "parameters": {"relation_heads": 2, "causal": True}},
        ),
        student=student,
        teacher=teacher,
        inputs=INPUTS,
    )
    values = listened(hints, student, teacher)
    batch, positions = batch_of(), decoder_positions(batch_of())
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    own = student(**inputs, use_cache=False, output_hidden_states=True).hidden_states
    other = teacher(**inputs, use_cache=False, output_hidden_states=True).hidden_states
    # transformers' last hidden state is behind the norm, ours before it.
    assert set(values) == {"hidden_mse", "attention_kl", "value_relation"}
    projected = hints.projectors["hidden_mse/0"](own[1])
    first = hidden_mse(projected, other[2], positions.real_BL)
    only = HintSet(
        specs({"kind": "hidden_mse", "student": [1], "teacher": [2], "projector": {}, "positions": "all"}),
        student=student,
        teacher=teacher,
        inputs=INPUTS,
    )
    only.projectors.load_state_dict(
        {name: value for name, value in hints.projectors.state_dict().items() if name.startswith("hidden_mse/0")}
    )
    torch.testing.assert_close(listened(only, student, teacher)["hidden_mse"], first)
    assert float(values["hidden_mse"].detach()) != pytest.approx(float(first.detach()))
    x_s = student.model.layers[1].input_layernorm(own[1])
    x_t = teacher.model.layers[3].input_layernorm(other[3])
    v_s = student.model.layers[1].self_attn.v_proj(x_s).unflatten(-1, (1, 4)).repeat_interleave(2, 2)
    v_t = teacher.model.layers[3].self_attn.v_proj(x_t).unflatten(-1, (2, 4)).repeat_interleave(2, 2)
    wanted = relation_kl(
        v_s, v_t, positions.trained_BL, segments_BL=positions.segments_BL, relation_heads=2, causal=True
    )
    torch.testing.assert_close(values["value_relation"], wanted)
    student.set_attn_implementation("eager")
    teacher.set_attn_implementation("eager")
    maps = [
        model(**inputs, use_cache=False, output_attentions=True).attentions[layer].double().clamp_min(1e-300).log()
        for model, layer in ((student, 1), (teacher, 2))
    ]
    torch.testing.assert_close(
        values["attention_kl"].double(), attention_kl(maps[0], maps[1], positions.trained_BL, heads="mean")
    )


@pytest.mark.parametrize("kind", [kind for kind in HINTS if kind != "attribution"])
def test_every_hint_teaches_a_student_of_another_size(kind: str) -> None:
    student, teacher = small(), llama(num_hidden_layers=4)
    more: dict[str, Any] = {"projector": {"kind": "linear"}} if HINTS[kind].same_width else {}
    if HINTS[kind].takes == "scores":
        more["parameters"] = {"heads": "mean"}
    if HINTS[kind].takes in ("query", "key", "value"):
        more["parameters"] = {"relation_heads": 2}
    hints = HintSet(specs({"kind": kind, **more}), student=student, teacher=teacher, inputs=INPUTS)
    value = listened(hints, student, teacher)[kind]
    value.backward()
    assert torch.isfinite(value)
    assert value > 0
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in hints.parameters())
    hints.close()
    assert student.config._attn_implementation == "sdpa"
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in student.model.layers)


def test_widths_without_a_projector_and_projectors_without_a_need() -> None:
    student, teacher = small(), llama()

    def made(**value: Any) -> HintSet:
        return HintSet(specs(value), student=student, teacher=teacher, inputs=INPUTS)

    with pytest.raises(RecipeError, match=r"layer 1 of the student has 8.*layer 2 of the teacher 16.*projector"):
        made(kind="hidden_mse", student=[1], teacher=[2])
    with pytest.raises(RecipeError, match="cka compares any two widths"):
        made(kind="cka", projector={})
    with pytest.raises(RecipeError, match="name at least two"):
        made(kind="fsp", student=[1], teacher=[1], projector={})
    with pytest.raises(RecipeError, match="layer 7 of the teacher, which has the layers 0 to 3"):
        made(kind="hidden_mse", student=[1], teacher=[7])
    with pytest.raises(ModelError, match=r"nearest: .*mlp"):
        made(kind="hidden_mse", student="layers.1.mpl", teacher="layers.1.mlp")
    with pytest.raises(RecipeError, match="recipe with a task"):
        made(kind="attribution")
    assert not any(block._forward_hooks for block in student.model.layers)


def test_a_shared_projector_is_one() -> None:
    student, teacher = small(), llama()
    shared = HintSet(
        specs({"kind": "hidden_mse", "projector": {"shared": True, "learning_rate": 0.1, "bias": False}}),
        student=student,
        teacher=teacher,
        inputs=INPUTS,
    )
    assert len(shared.projectors) == 1
    assert [(group["lr"], len(group["params"])) for group in shared.parameter_groups()] == [(0.1, 1)]


def test_maps_searched_by_cka_find_a_layer_that_was_copied() -> None:
    teacher = llama(num_hidden_layers=4)
    student = llama(num_hidden_layers=2)
    student.load_state_dict({**student.state_dict(), **{k: v for k, v in teacher.state_dict().items() if ".0." in k}})
    student.model.embed_tokens.load_state_dict(teacher.model.embed_tokens.state_dict())
    hints = HintSet(
        specs({"kind": "hidden_mse", "map": "cka"}),
        student=student,
        teacher=teacher,
        inputs=INPUTS,
        calibration=lambda: [{"input_ids": IDS}],
    )
    assert hints.paired[0].pairs[0].teacher.layer == 1
    with pytest.raises(RecipeError, match="calibration text"):
        HintSet(specs({"kind": "cka", "map": "cka"}), student=student, teacher=teacher, inputs=INPUTS)


def test_weights_follow_their_schedules() -> None:
    student, teacher = llama(num_hidden_layers=2), llama(num_hidden_layers=4)
    torch.manual_seed(1)
    for parameter in student.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    linear: dict[str, Any] = {"kind": "hidden_mse", "weight_schedule": "linear", "weight": 4.0, "weight_end": 0.0}
    by_size: dict[str, Any] = {"kind": "hidden_cosine", "weight_schedule": "gradient_magnitude", "weight": 0.5}
    hints = HintSet(specs(linear, by_size), student=student, teacher=teacher, inputs=INPUTS)
    hints.progress = lambda: 0.25
    values = listened(hints, student, teacher)
    rest = student(IDS).logits.square().mean()
    total = hints.weighed(values, rest)
    factor = float(hints.factors[1])
    expected = 3.0 * values["hidden_mse"] + 0.5 * factor * values["hidden_cosine"]
    torch.testing.assert_close(total, expected)
    shared = list(student.model.layers[0].parameters())

    def length(loss: Tensor) -> float:
        return float(torch.nn.utils.get_total_norm(torch.autograd.grad(loss, shared, retain_graph=True)))

    assert length(0.5 * factor * values["hidden_cosine"]) == pytest.approx(0.5 * length(rest), rel=1e-4)
    assert all(p.grad is None for p in student.parameters())
    hints.step = lambda: 7
    hints.weighed(values, rest * 100)
    assert float(hints.factors[1]) == factor  # between measurements it stays
    hints.step = lambda: 10
    hints.weighed(values, rest * 100)
    assert float(hints.factors[1]) == pytest.approx(100 * factor, rel=1e-4)


def test_factors_and_projectors_are_kept_in_checkpoints(tmp_path: Any) -> None:
    student, teacher = small(), llama()

    def made(seed: int) -> HintSet:
        spec = {"kind": "hidden_mse", "projector": {"kind": "orthogonal"}, "weight_schedule": "gradient_magnitude"}
        return HintSet(specs(spec), student=student, teacher=teacher, inputs=INPUTS, seed=seed)

    first, second = made(0), made(1)
    first.factors[0] = 3.5
    first.measured_at.fill_(12)
    KeptModule(first, "hints").save(tmp_path)
    KeptModule(second, "hints").restore(tmp_path)
    assert float(second.factors[0]) == 3.5
    assert int(second.measured_at) == 12
    x = torch.randn(3, 8)
    torch.testing.assert_close(first.projectors["hidden_mse/0"](x), second.projectors["hidden_mse/0"](x))


def test_blocks_that_read_the_teacher_s_states_are_trained_apart() -> None:
    teacher, student = llama(num_hidden_layers=4), llama(num_hidden_layers=2)
    hints = HintSet(
        specs({"kind": "hidden_mse", "positions": "all"}),
        student=student,
        teacher=teacher,
        inputs=INPUTS,
        block_inputs=True,
    )
    values = listened(hints, student, teacher)
    batch = batch_of()
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        states = teacher(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        taps: list[Tensor] = []
        teacher.model.layers[3].register_forward_hook(lambda m, a, out: taps.append(out))
        teacher(**inputs, use_cache=False)
    # By hand: each block of the student from the teacher's input to it; a copy of the teacher's block reads the same.
    student.model.layers[1].load_state_dict(teacher.model.layers[3].state_dict())
    embedded = student.model.embed_tokens(IDS)
    rotary = student.model.rotary_emb(embedded, position_ids=inputs["position_ids"])
    mask = torch.full((2, 1, 8, 8), torch.finfo(torch.float32).min).triu(1)
    mask[0, :, 4:, :4] = torch.finfo(torch.float32).min
    mask[1, :, 5:, :5] = torch.finfo(torch.float32).min
    own = student.model.layers[1](states[2], attention_mask=mask, position_embeddings=rotary)
    low = student.model.layers[0](embedded, attention_mask=mask, position_embeddings=rotary)
    real = decoder_positions(batch).real_BL
    wanted = (hidden_mse(low, states[2], real) + hidden_mse(own, taps[0], real)) / 2
    found = listened(hints, student, teacher)["hidden_mse"]
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, values["hidden_mse"])
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for _ in range(8):
        optimiser.zero_grad()
        listened(hints, student, teacher)["hidden_mse"].backward()
        optimiser.step()
    assert listened(hints, student, teacher)["hidden_mse"] < found / 2
    with pytest.raises(RecipeError, match="hidden states of one width, not key_relation"):
        HintSet(specs({"kind": "key_relation"}), student=student, teacher=teacher, inputs=INPUTS, block_inputs=True)


def objective(student: Any, teacher: Any, values: list[dict[str, Any]], **spec: Any) -> Objective:
    given = ObjectiveSpec.model_validate({"hints": values, **spec})
    hints = HintSet(given.hints, student=student, teacher=teacher, inputs=INPUTS)
    return Objective(given, teacher=LocalTeacher(teacher, 64), vocabulary_size=64, compiled=False, hints=hints)


def test_hints_stand_beside_any_divergence_and_micro_batches_add_up() -> None:
    student, teacher = small(), llama()
    hint = {"kind": "hidden_mse", "projector": {}, "weight": 2.0}
    made = objective(student, teacher, [hint], divergence={"kind": "reverse_kl"})
    batch = batch_of()
    whole = made(student, student, batch, None)
    plain = Objective(
        ObjectiveSpec.model_validate({"divergence": {"kind": "reverse_kl"}}),
        teacher=LocalTeacher(teacher, 64),
        vocabulary_size=64,
        compiled=False,
    )(student, student, batch, None)
    torch.testing.assert_close(whole.loss, plain.loss + 2.0 * whole.others["hint_hidden_mse"])
    rows = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(2)]
    count = torch.tensor(11)
    parts = [made(student, student, row, count) for row in rows]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    with pytest.raises(ValueError, match="set of hints"):
        Objective(made.spec, teacher=LocalTeacher(teacher, 64), vocabulary_size=64)


def test_a_batch_without_trained_tokens_adds_nothing() -> None:
    student, teacher = small(), llama()
    made = objective(student, teacher, [{"kind": "hidden_mse", "projector": {}}, {"kind": "value_relation"}])
    batch = batch_of()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    step = made(student, student, batch, torch.tensor(5))
    step.loss.backward()
    assert float(step.loss.detach()) == 0.0
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in student.parameters())


def test_families_of_different_kinds_are_compared() -> None:
    """A small BERT learns relations from a larger one; a vision transformer is compared with itself."""
    from transformers import BertConfig, BertModel

    teacher = MODELS["bert"]()
    student = BertModel(
        BertConfig(vocab_size=64, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    )
    hints = HintSet(
        specs({"kind": "query_relation", "parameters": {"relation_heads": 4}}, {"kind": "cka", "positions": "first"}),
        student=student,
        teacher=teacher,
        inputs=INPUTS,
    )
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    with hints.listening():
        teacher(IDS, attention_mask=mask)
        student(IDS, attention_mask=mask)
    values = hints.values(encoder_positions(mask))
    assert values["query_relation"] > 0
    assert 0 <= values["cka"] <= 1
