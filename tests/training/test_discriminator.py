"""The discriminator: its score and steps against plain autograd, learning, and going on to the bit after a stop."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lmdistill.data import Collator
from lmdistill.errors import CorruptFile, NonFiniteLoss
from lmdistill.io import seal_folder, verify_folder
from lmdistill.models import last_hidden, output_head
from lmdistill.objectives import group_advantages, policy_loss, to_tokens
from lmdistill.training.discriminator import FOLDER, Discriminator

V = 40
LN2 = math.log(2)


def student(seed: int = 0, **fields: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
    }
    return LlamaForCausalLM(LlamaConfig(**{**config, **fields}))


def batch_of(texts: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Padded rows of a prompt and an answer each."""
    rows = [
        {
            "input_ids": prompt + answer,
            "labels": [-100] * len(prompt) + answer,
            "position_ids": list(range(len(prompt) + len(answer))),
            "row_ids": [f"row-{number}"],
        }
        for number, (prompt, answer) in enumerate(texts)
    ]
    return Collator(pad_id=3)(rows)


def texts(seed: int, count: int = 6) -> list[tuple[list[int], list[int]]]:
    """Prompts with answers of unequal length: the teacher's (even places) of low ids, the student's of high ones."""
    random = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(1, 6, (1,), generator=random))
        return torch.randint(low, high, (length,), generator=random).tolist()

    return [(ids(0, V), ids(0, V // 2) if place % 2 == 0 else ids(V // 2, V)) for place in range(count)]


PAIRS = torch.tensor([[0, 1], [2, 3], [4, 5]])


def trained(seed: int = 0, **settings: Any) -> Discriminator:
    return Discriminator.of(student(seed), **{"learning_rate": 1e-2, **settings})


def state_of(made: Discriminator) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made._parameters().items()}


def scores_by_definition(model: LlamaForCausalLM, head: Tensor, rows: list[tuple[list[int], list[int]]]) -> Tensor:
    """Each text alone, without padding: the head at the last hidden state of its last token."""
    found = []
    for prompt, answer in rows:
        ids = torch.tensor([prompt + answer])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        found.append(hidden[0, -1] @ head[0])
    return torch.stack(found)


def test_starts_undecided_and_leaves_the_student_alone() -> None:
    model = student()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.model.norm.weight.grad = torch.ones(16)
    made = Discriminator.of(model, learning_rate=1e-2)
    batch = batch_of(texts(0))
    assert made.score(batch).abs().max() == 0
    step = made.update([batch], [PAIRS])
    assert step.loss == pytest.approx(LN2)
    assert (step.accuracy, step.margin, step.pairs) == (0.0, 0.0, 3)
    assert made.score(batch).abs().max() > 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert model.model.norm.weight.grad.tolist() == [1.0] * 16
    assert model.model.embed_tokens.weight.grad is None


def test_score_is_taken_at_the_answers_last_token() -> None:
    made = trained()
    torch.nn.init.normal_(made.head.weight)
    rows = texts(1)
    model: Any = made.model
    with torch.no_grad():
        expected = scores_by_definition(model, made.head.weight, rows)
    torch.testing.assert_close(made.score(batch_of(rows)), expected, rtol=1e-5, atol=1e-6)
    # More padding and other neighbours change nothing; a row without an answer is no accident.
    wider = batch_of([*rows, ([1, 2, 3] * 8, [4]), ([5, 6], [])])
    torch.testing.assert_close(made.score(wider)[:6], expected, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(made.score(wider)).all()
    assert not made.score(wider).requires_grad


@pytest.mark.parametrize("cut", [False, True], ids=["one batch", "micro-batches"])
def test_updates_are_those_of_plain_autograd(cut: bool) -> None:
    """-log sigma(D(y_T) - D(y_S)), mean over pairs; clipped, then AdamW. One answer may be in several pairs."""
    made = trained(max_grad_norm=0.2)
    torch.nn.init.normal_(made.head.weight)
    model, head = copy.deepcopy(made.model), made.head.weight.detach().clone().requires_grad_()
    plain: Any = model
    leaves = [*plain.parameters(), head]
    optimiser = torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.01)
    for seed in (2, 3):
        rows = texts(seed)
        pairs = torch.tensor([[0, 1], [0, 3], [2, 3], [4, 5]])
        scores = scores_by_definition(plain, head, rows)
        chosen, rejected = scores[pairs[:, 0]], scores[pairs[:, 1]]
        loss = torch.log1p(torch.exp(rejected - chosen)).mean()
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(leaves, 0.2)
        optimiser.step()
        if cut:
            step = made.update([batch_of(rows[:4]), batch_of(rows[4:])], [pairs[:3], pairs[3:] - 4])
        else:
            step = made.update([batch_of(rows)], [pairs])
        assert step.loss == pytest.approx(loss.item(), rel=1e-4)
        assert step.margin == pytest.approx((chosen - rejected).mean().item(), rel=1e-3, abs=1e-5)
        assert step.gradient_norm == pytest.approx(norm.item(), rel=1e-3)
        assert step.pairs == 4
    assert made.updates == 2
    for ours, theirs in zip(made._parameters().values(), leaves, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)


def test_learns_to_tell_them_apart() -> None:
    made = trained()
    for seed in range(30):
        step = made.update([batch_of(texts(seed, 16))], [torch.arange(16).view(8, 2)])
    assert step.loss < 0.1
    unseen = made.score(batch_of(texts(99, 40)))
    assert (unseen[0::2] > unseen[1::2]).float().mean() >= 0.95


def test_goes_on_to_the_bit(tmp_path: Path) -> None:
    """Stopped and resumed in another process's place: the same weights and scores as without the stop."""
    straight, stopped = trained(), trained()
    for seed in range(3):
        straight.update([batch_of(texts(seed))], [PAIRS])
        stopped.update([batch_of(texts(seed))], [PAIRS])
    stopped.save(tmp_path)
    stopped.update([batch_of(texts(77))], [PAIRS])
    stopped.save(tmp_path)  # an older state of the same checkpoint is replaced
    straight.update([batch_of(texts(77))], [PAIRS])
    seal_folder(tmp_path)
    verify_folder(tmp_path)

    resumed = trained(seed=5)  # other weights to begin with
    resumed.restore(tmp_path)
    assert resumed.updates == straight.updates == 4
    for seed in range(3, 6):
        one = straight.update([batch_of(texts(seed))], [PAIRS])
        other = resumed.update([batch_of(texts(seed))], [PAIRS])
        assert one == other
    for name, parameter in state_of(straight).items():
        assert torch.equal(parameter, state_of(resumed)[name]), name
    assert torch.equal(straight.score(batch_of(texts(9))), resumed.score(batch_of(texts(9))))


def test_before_the_first_update_too(tmp_path: Path) -> None:
    made = trained()
    made.save(tmp_path)
    resumed = trained(seed=5)
    resumed.update([batch_of(texts(1))], [PAIRS])  # forgotten by restoring
    resumed.restore(tmp_path)
    assert resumed.updates == 0
    assert made.update([batch_of(texts(0))], [PAIRS]) == resumed.update([batch_of(texts(0))], [PAIRS])
    for name, parameter in state_of(made).items():
        assert torch.equal(parameter, state_of(resumed)[name]), name


def test_what_lies_on_disk(tmp_path: Path) -> None:
    """Safetensors and JSON alone; tied weights once."""
    made = trained()
    made.update([batch_of(texts(0))], [PAIRS])
    made.save(tmp_path)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
        "optimiser.safetensors",
        "state.json",
        "weights.safetensors",
    ]
    weights = load_file(tmp_path / FOLDER / "weights.safetensors")
    assert "model.model.embed_tokens.weight" in weights
    assert "model.lm_head.weight" not in weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    made = trained()
    made.update([batch_of(texts(0))], [PAIRS])
    made.save(tmp_path)
    wider = Discriminator.of(student(vocab_size=48))
    with pytest.raises(CorruptFile, match=r"embed_tokens.weight' has shape \(40, 16\) there and \(48, 16\) here"):
        wider.restore(tmp_path)
    weights = tmp_path / FOLDER / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFile, match=r"weights\.safetensors: not readable"):
        trained().restore(tmp_path)
    weights.unlink()
    with pytest.raises(CorruptFile, match="missing; resume from an older checkpoint"):
        trained().restore(tmp_path)
    weights.write_bytes(whole)
    averages = load_file(tmp_path / FOLDER / "optimiser.safetensors")
    save_file({**averages, "exp_avg.model.gone": torch.zeros(1)}, tmp_path / FOLDER / "optimiser.safetensors")
    with pytest.raises(CorruptFile, match=r"'model.gone' is not trained here"):
        trained().restore(tmp_path)


def test_frozen_parts_of_the_student_stay(tmp_path: Path) -> None:
    model = student()
    model.model.embed_tokens.requires_grad_(False)
    made = Discriminator.of(model, learning_rate=1e-2)
    for seed in range(2):
        made.update([batch_of(texts(seed))], [PAIRS])
    own: Any = made.model
    assert torch.equal(own.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert not torch.equal(own.model.norm.weight, model.model.norm.weight)
    made.save(tmp_path)
    again = Discriminator.of(model, learning_rate=1e-2)
    again.restore(tmp_path)
    assert torch.equal(again.score(batch_of(texts(5))), made.score(batch_of(texts(5))))


def test_half_precision_students_get_a_copy_in_float32() -> None:
    model = student().to(torch.bfloat16)
    made = Discriminator.of(model, learning_rate=1e-6, compute_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in made._parameters().values()} == {torch.float32}
    assert model.dtype == torch.bfloat16
    before = state_of(made)
    for seed in range(3):  # the head is 0 at first, so the body gets its first gradient at the second step
        made.update([batch_of(texts(seed))], [PAIRS])
    moved = [name for name, value in state_of(made).items() if not torch.equal(value, before[name])]
    assert len(moved) == len(before)
    assert made.score(batch_of(texts(4))).dtype == torch.float32


def test_no_pairs_change_nothing() -> None:
    made = trained()
    before = state_of(made)
    step = made.update([batch_of(texts(0))], [PAIRS[:0]])
    assert (step.pairs, made.updates) == (0, 0)
    assert all(torch.equal(before[name], value) for name, value in state_of(made).items())
    assert made.update([batch_of(texts(0)), batch_of(texts(1))], [PAIRS[:0], PAIRS]).pairs == 3


def test_a_step_that_is_not_finite_is_not_taken() -> None:
    made = trained()
    made.update([batch_of(texts(0))], [PAIRS])
    with torch.no_grad():
        made.head.weight[0, 0] = torch.nan
    before = state_of(made)
    with pytest.raises(NonFiniteLoss, match=r"update 2 of the discriminator: its loss is nan.*\(now 0\.01\)"):
        made.update([batch_of(texts(1))], [PAIRS])
    assert made.updates == 1
    for name, value in state_of(made).items():
        assert torch.equal(before[name], value) or name == "head"
    assert all(parameter.grad is None for parameter in made._parameters().values())


def sample(model: LlamaForCausalLM, prompts: Tensor, length: int) -> Tensor:
    """Answers drawn token by token, (S, length)."""
    ids = prompts
    with torch.no_grad():
        for _ in range(length):
            z = model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, torch.multinomial(z.softmax(-1), 1)], 1)
    return ids[:, prompts.shape[1] :]


def test_a_student_learns_from_scores_alone() -> None:
    """GAD in small: the teacher's texts hold low ids; the student, which sees no text of it, comes to write those."""
    generator = student(1)
    made = Discriminator.of(generator, learning_rate=1e-2)
    optimiser = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    prompts_n, group, length = 4, 8, 4
    low = []
    for step in range(50):
        prompts = torch.randint(0, V, (prompts_n, 1)).repeat_interleave(group, 0)
        answers = sample(generator, prompts, length)
        low.append((answers < V // 2).float().mean().item())
        teachers = torch.randint(0, V // 2, (prompts_n, length))
        everything = [([int(p)], a) for p, a in zip(prompts[:, 0], answers.tolist(), strict=True)]
        everything += [([int(p)], t) for p, t in zip(prompts[::group, 0], teachers.tolist(), strict=True)]
        batch = batch_of(everything)
        own = torch.arange(prompts_n * group)
        scores = made.score(batch)[own]
        made.update([batch], [torch.stack([len(own) + own // group, own], 1)])
        if step < 5:  # the discriminator warms up
            continue
        advantages = group_advantages(scores, own // group)
        mask = torch.zeros(len(own), 1 + length, dtype=torch.bool)
        mask[:, :length] = True
        ids = torch.cat([answers, answers[:, :1]], 1)
        inputs = {name: batch[name][own] for name in ("input_ids", "position_ids")}
        hidden = last_hidden(generator, inputs).flatten(0, 1)
        loss = policy_loss(
            hidden, output_head(generator).weight_VH, ids.flatten(), to_tokens(advantages, mask).flatten(),
            mask_N=mask.flatten(),
        ).loss  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert sum(low[:5]) / 5 < 0.65
    assert sum(low[-15:]) / 15 > 0.8


def test_margin_is_the_log_odds_of_the_pair() -> None:
    """sigma(D(y_T) - D(y_S)) is the probability that the loss speaks of."""
    made = trained()
    torch.nn.init.normal_(made.head.weight)
    scores = made.score(batch_of(texts(1)))
    step = made.update([batch_of(texts(1))], [PAIRS[:1]])
    assert step.loss == pytest.approx(-F.logsigmoid(scores[0] - scores[1]).item(), rel=1e-4)
