"""Text that the student writes in this process: the same as token by token, however it is batched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from writing import ENDS, VOCABULARY, log_probs, names, prompts, tiny, write_naively

from lmdistill.errors import DataError, ModelError, RecipeError, TrainingError
from lmdistill.models import load_model, load_tokenizer
from lmdistill.recipe import GenerationSpec, LoraSpec, ModelSpec
from lmdistill.students.lora import with_adapters
from lmdistill.trajectories.rollouts import LocalWriter
from lmdistill.trajectories.types import Author, Trajectory, tally
from lmdistill.trajectories.weights import WeightCopy, plain_weights


def writer(model: Any, dtype: torch.dtype = torch.float64, **fields: Any) -> LocalWriter:
    spec = GenerationSpec(**{"max_new_tokens": 12, "batch_size": 4} | fields)
    made = LocalWriter(spec, end_ids=ENDS, vocabulary_size=VOCABULARY, dtype=dtype)
    made.refresh(model, 0)
    return made


def write(made: LocalWriter, given: list[list[int]], seed: int = 5, **options: Any) -> list[Trajectory]:
    return made.write(given, seed=seed, step=3, row_ids=names(len(given)), **options)


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_text_is_that_of_one_text_token_by_token(kind: str, batch_size: int) -> None:
    model, given = tiny(kind), prompts(11)
    found = write(writer(model, batch_size=batch_size), given)
    for place, (prompt, one) in enumerate(zip(given, found, strict=True)):
        answer, logprobs = write_naively(model, prompt, place, seed=5, limit=12)
        assert (one.prompt_ids, one.answer_ids, one.row_id, one.step) == (prompt, answer, f"row {place}", 3)
        np.testing.assert_allclose(one.logprobs, logprobs, atol=1e-5)
        assert one.behaviour_logprobs == one.logprobs
        assert one.finished == (answer[-1] in ENDS)
        assert one.authors == [Author.STUDENT] * len(answer)
    assert {one.finished for one in found} == {True, False}  # both ends are met
    assert max(max(one.answer_ids) for one in found) < VOCABULARY  # padded rows of the vocabulary are never drawn


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_long_answers_outgrow_their_buffers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdistill.trajectories.columns._SPARE", 3)
    model, given = tiny(kind), prompts(9, longest=30)
    found = write(writer(model, max_new_tokens=40, batch_size=3), given)
    for place, (prompt, one) in enumerate(zip(given, found, strict=True)):
        assert one.answer_ids == write_naively(model, prompt, place, seed=5, limit=40)[0]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 1.0), (1.0, 0.7), (0.0, 1.0)])
def test_shaped_sampling_does_not_depend_on_the_batch(temperature: float, top_p: float) -> None:
    model, given = tiny(), prompts(10)
    shape = {"temperature": temperature, "top_p": top_p}
    one, many = (write(writer(model, batch_size=size, **shape), given) for size in (1, 7))
    assert [text.answer_ids for text in one] == [text.answer_ids for text in many]
    assert one[0].behaviour_logprobs != one[0].logprobs
    for place, text in enumerate(one):
        own = log_probs(model, [*given[place], *text.answer_ids[:-1]])[text.answer_ids[-1]]
        assert text.logprobs is not None
        assert text.logprobs[-1] == pytest.approx(own, abs=1e-5)  # of the plain distribution
        if temperature == 0 or top_p == 1.0:
            naive = write_naively(model, given[place], place, seed=5, limit=12, temperature=temperature)[0]
            assert text.answer_ids == naive


def test_greedy_text_is_that_of_generate() -> None:
    model: Any = tiny()
    found = write(writer(model, temperature=0.0), prompts(6))
    for one in found:
        theirs = model.generate(
            torch.tensor([one.prompt_ids]), max_new_tokens=12, do_sample=False, suppress_tokens=list(range(37, 40))
        )
        assert theirs[0, len(one.prompt_ids) :].tolist() == one.answer_ids


def test_what_ran_before_does_not_matter_and_seeds_do() -> None:
    model, given = tiny(), prompts(6)
    made = writer(model)
    first = write(made, given)
    torch.manual_seed(99)
    write(made, prompts(9), seed=6)
    assert write(made, given) == first
    assert write(made, given, seed=6) != first
    state = torch.get_rng_state()
    write(writer(model), given)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers move


def test_equal_prompts_are_read_once_and_answered_differently() -> None:
    model, given = tiny(), [prompt for prompt in prompts(5) for _ in range(3)]
    made, lengths = writer(model, batch_size=6), []
    made._readers[0].model.register_forward_pre_hook(
        lambda module, args: lengths.append(tuple(args[0].shape)), with_kwargs=False
    )
    found = write(made, given)
    assert lengths[0][0] == 2  # six slots, two prompts
    for place, one in enumerate(found):
        assert one.answer_ids == write_naively(model, given[place], place, seed=5, limit=12)[0]
    assert len({tuple(one.answer_ids) for one in found}) > 10


def test_a_shorter_limit_gives_the_beginning_of_the_same_text() -> None:
    made, given, heard = writer(tiny()), prompts(6), []
    whole = write(made, given, told=heard.append)
    short = write(made, given, max_new_tokens=3)
    assert [one.answer_ids for one in short] == [one.answer_ids[:3] for one in whole]
    assert [one.finished for one in short] == [one.answer_ids[:3][-1] in ENDS for one in whole]
    assert sorted(heard) == sorted(len(one.answer_ids) for one in whole)
    assert write(made, given, max_new_tokens=500) == whole


def test_tokens_are_drawn_as_the_model_says() -> None:
    model = tiny()
    found = write(writer(model, max_new_tokens=1, batch_size=500), [[5, 9, 7]] * 3000)
    counted = np.bincount([one.answer_ids[0] for one in found], minlength=VOCABULARY)
    expected = np.exp(log_probs(model, [5, 9, 7])) * len(found)
    often = expected > 5
    statistic = ((counted - expected)[often] ** 2 / expected[often]).sum()
    assert statistic < often.sum() + 4 * np.sqrt(2 * often.sum())


def test_texts_that_are_empty_or_never_end_are_returned_and_counted() -> None:
    model: Any = tiny()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely as any other
    found = write(writer(model, max_new_tokens=4), prompts(60))
    counts = tally(found)
    assert counts.rows == 60
    assert counts.tokens == sum(len(one.answer_ids) for one in found)
    assert counts.empty == sum(one.answer_ids[0] in ENDS for one in found) > 0
    assert counts.unfinished == sum(one.answer_ids[-1] not in ENDS for one in found) > 0


@pytest.fixture
def bfloat16_copy() -> Iterator[tuple[Any, LocalWriter]]:
    model: Any = tiny().float().train()
    made = writer(model, dtype=torch.bfloat16)
    yield model, made
    made.close()


def test_refresh_copies_weights_and_leaves_the_student_alone(bfloat16_copy: tuple[Any, LocalWriter]) -> None:
    model, made = bfloat16_copy
    given = prompts(5)
    before, held = write(made, given), made._copy.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert write(made, given) == before  # the weights are those of the last refresh
    made.refresh(model, 1)
    assert made._copy.model is held
    assert write(made, given) != before
    assert held is not None
    for name, parameter in held.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).to(torch.bfloat16)), name
    assert held.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.training
    assert model.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_are_merged_into_the_copy() -> None:
    plain: Any = tiny().float()
    adapted: Any = with_adapters(plain, LoraSpec(rank=2, target_modules=["q_proj", "down_proj"]), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    copied = WeightCopy(torch.float32).take(adapted)
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(copied(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name or "base_layer" in name for name, _ in plain_weights(adapted))


def test_weights_that_do_not_fit_their_configuration_are_refused() -> None:
    model: Any = tiny()
    model.config.intermediate_size = 23
    with pytest.raises(ModelError, match=r"\(24, 16\) meets \(23, 16\)"):
        WeightCopy(torch.float32).take(model)


def test_what_cannot_be_written_is_refused() -> None:
    made = writer(tiny())
    with pytest.raises(DataError, match=r"row 1: a prompt of 85 tokens and up to 12 new ones do not fit into the 96"):
        write(made, [[5, 6], [5] * 85])
    assert len(write(made, [[5] * 84])[0].answer_ids) > 0  # exactly the model's context
    with pytest.raises(DataError, match="row 0: its prompt has no tokens"):
        write(made, [[]])
    with pytest.raises(RecipeError, match="num_beams = 2"):
        LocalWriter(GenerationSpec(num_beams=2), end_ids=ENDS, vocabulary_size=VOCABULARY)
    with pytest.raises(ValueError, match="before its first refresh"):
        write(LocalWriter(GenerationSpec(), end_ids=ENDS, vocabulary_size=VOCABULARY), [[5]])


def test_nan_from_the_sampler_names_rows_and_step() -> None:
    model: Any = tiny()
    made = writer(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    made.refresh(model, 1)
    with pytest.raises(TrainingError, match=r"step 3: the logits .* for 1 of 2 rows \(row 1\), at answer token 0"):
        write(made, [[5, 6], [7, 6]])
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = 0.0
    made.refresh(model, 2)
    assert len(write(made, [[5, 6], [7, 6]])) == 2  # nothing of the failure is left


def test_models_whose_layers_keep_no_keys_are_refused() -> None:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = Qwen3NextConfig(
        vocab_size=40,
        **sizes,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    with pytest.raises(ModelError, match=r"LinearAttentionLayer.*let a server write"):
        writer(Qwen3NextForCausalLM(config))


def test_the_real_model_writes_sense(smollm2_folder: Path) -> None:
    spec = ModelSpec(model=str(smollm2_folder))
    model, tokenizer = load_model(spec, dtype=torch.float32, device=torch.device("cpu")), load_tokenizer(spec)
    questions = ["What is the capital of France?", "Who wrote the play Hamlet?"]
    chats = [[{"role": "user", "content": question}] for question in questions]
    given = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    made = LocalWriter(
        GenerationSpec(max_new_tokens=16, temperature=0.0, batch_size=2),
        end_ids=[tokenizer.eos_token_id],
        vocabulary_size=len(tokenizer),
    )
    made.refresh(model, 0)
    found = made.write(given, seed=0, step=0, row_ids=questions)
    texts = [tokenizer.decode(one.answer_ids) for one in found]
    assert "Paris" in texts[0]
    assert "Shakespeare" in texts[1]
    for one in found:
        ids = torch.tensor([[*one.prompt_ids, *one.answer_ids]])
        with torch.no_grad():
            whole = model(ids).logits[0, len(one.prompt_ids) - 1 : -1].log_softmax(-1)
        exact = whole.gather(1, torch.tensor(one.answer_ids)[:, None])[:, 0]
        # The copy that writes may be in bfloat16.
        torch.testing.assert_close(torch.tensor(one.logprobs), exact, atol=0.15, rtol=0.1)
