"""Students: cut exactly what is said, keep what works, and load with transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lmdistill.errors import ModelError, RecipeError
from lmdistill.models import last_hidden, load_tokenizer, output_head, save_model
from lmdistill.progress import Progress
from lmdistill.recipe import DepthSpec, LoraSpec, ModelSpec, StudentSpec, WidthSpec
from lmdistill.students import build_student, merged, with_adapters
from lmdistill.students.families import decoder_layers, family_of
from lmdistill.students.prune import LayerChain, block_influence, choose_layers, with_layers
from lmdistill.students.width import narrow

V = 97
SHARED: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES = ["llama", "qwen2", "qwen3", "gemma3", "gpt2"]


def make(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    if family == "llama":
        made: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**SHARED, tie_word_embeddings=True))
    elif family == "qwen2":
        made = Qwen2ForCausalLM(Qwen2Config(**SHARED))
    elif family == "qwen3":
        made = Qwen3ForCausalLM(Qwen3Config(**SHARED, head_dim=8))
    elif family == "gemma3":
        config = Gemma3TextConfig(
            **SHARED,
            head_dim=8,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            final_logit_softcapping=5.0,
        )
        made = Gemma3ForCausalLM(config)
    else:
        made = GPT2LMHeadModel(
            GPT2Config(vocab_size=V, n_embd=32, n_layer=4, n_head=4, n_positions=128, n_inner=48, attn_pdrop=0.0)
        )
    with torch.no_grad():  # random norms and biases, so that a wrong slice of them shows
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if name.endswith("wpe.weight"):
                parameter.mul_(1.0)
    return made.eval()


def batches(count: int = 2) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    positions = torch.cat([torch.arange(10), torch.arange(6)]).expand(2, 16)
    return [{"input_ids": torch.randint(0, V, (2, 16)), "position_ids": positions.clone()} for _ in range(count)]


@torch.no_grad()
def logits(model: PreTrainedModel, kept_ids: torch.Tensor | None = None) -> torch.Tensor:
    return model(**batches()[0], use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_sees_the_same_logits_as_transformers(family: str) -> None:
    model = make(family)
    hidden_BLH = last_hidden(model, batches()[0])
    head = output_head(model)
    raw = hidden_BLH @ head.weight_VH.T * head.logit_scale
    shown = head.softcap * torch.tanh(raw / head.softcap) if head.softcap else raw
    torch.testing.assert_close(shown, logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_subset_computes_what_the_model_does_with_layers_skipped(family: str) -> None:
    model, kept = make(family), [0, 2, 3]
    cut = with_layers(model, kept)
    chain = LayerChain(model, batches(1))
    with torch.no_grad():
        hidden = chain.inputs[0]
        for index in kept:
            hidden = chain._call(0, index, hidden)
        expected = chain.norm(hidden)
    torch.testing.assert_close(last_hidden(cut, batches()[0]), expected, rtol=1e-5, atol=1e-5)
    assert len(decoder_layers(cut)) == 3
    assert cut.config.num_hidden_layers == 3


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_student_in_16_bits_keeps_the_rotary_frequencies(family: str) -> None:
    model: Any = make(family)
    for parameter in model.parameters():  # as transformers loads it: weights in 16 bits, what is computed in 32
        parameter.data = parameter.data.to(torch.bfloat16)
    cut = with_layers(model, [0, 3])
    assert cut.dtype == torch.bfloat16
    computed = dict(cut.named_buffers())
    frequencies = {name: buffer for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert frequencies
    for name, buffer in frequencies.items():
        assert not torch.equal(buffer, buffer.bfloat16().float())
        assert computed[name].dtype == torch.float32
        assert torch.equal(computed[name], buffer)


@pytest.mark.parametrize("family", FAMILIES)
def test_students_load_with_transformers_alone(family: str, tmp_path: Path) -> None:
    cut = with_layers(make(family), [1, 3])
    sizes = WidthSpec(intermediate=24) if family == "gpt2" else WidthSpec(intermediate=24, heads=2, hidden=24)
    narrowed, _ = narrow(cut, sizes, batches(), Progress())
    narrowed.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(make(family))
    torch.testing.assert_close(logits(again), logits(narrowed))


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_changes_nothing(family: str) -> None:
    model = make(family)
    same, _ = narrow(
        with_layers(model, [0, 1, 2, 3]), WidthSpec(intermediate=48, heads=4, hidden=32), batches(), Progress()
    )
    torch.testing.assert_close(logits(same), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_dead_neurons_are_found_and_go_without_a_trace(family: str) -> None:
    model = make(family)
    fam = family_of(model.config)
    dead = torch.tensor([1, 5, 6, 20, 33, 47])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for dimension, axis in enumerate(fam.axes_of(name)):
                if axis == "neurons":
                    parameter.index_fill_(dimension, dead, 0.0)
    pruned, _ = narrow(model, WidthSpec(intermediate=42), batches(), Progress())
    torch.testing.assert_close(logits(pruned), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_dead_group_of_heads_is_found_and_goes_without_a_trace(family: str) -> None:
    model = make(family)
    with torch.no_grad():
        for number, layer in enumerate(decoder_layers(model)):
            value = layer.self_attn.v_proj
            rows = slice(8 * (number % 2), 8 * (number % 2) + 8)  # another group in every second layer
            value.weight[rows] = 0
            if value.bias is not None:
                value.bias[rows] = 0
    pruned, _ = narrow(model, WidthSpec(heads=2), batches(), Progress())
    torch.testing.assert_close(logits(pruned), logits(model), rtol=1e-5, atol=1e-5)
    assert pruned.config.num_key_value_heads == 1


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_dead_hidden_channels_are_found_and_go_without_a_trace(family: str) -> None:
    model = make(family)
    dead = torch.tensor([0, 3, 9, 17, 18, 30, 31, 25])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
                parameter.index_fill_(1 if name.endswith("embed_tokens.weight") else 0, dead, 0.0)
    pruned, _ = narrow(model, WidthSpec(hidden=24), batches(), Progress())
    # The norms' epsilon is not rescaled, so that agreement is a little looser than for neurons.
    torch.testing.assert_close(logits(pruned), logits(model), rtol=1e-3, atol=1e-3)


def test_gpt2_prunes_heads_and_width_together_or_says_why_not(tmp_path: Path) -> None:
    model = make("gpt2")
    with pytest.raises(RecipeError, match="heads x 8"):
        narrow(model, WidthSpec(heads=2), batches(), Progress())
    pruned, _ = narrow(model, WidthSpec(heads=2, hidden=16), batches(), Progress())
    assert (pruned.config.n_head, pruned.config.n_embd) == (2, 16)
    assert bool(torch.isfinite(logits(pruned)).all())


@pytest.mark.parametrize("importance", ["block_influence", "perplexity", "greedy_perplexity"])
def test_layers_that_do_nothing_go_first(importance: Any) -> None:
    model = make("llama")
    with torch.no_grad():
        for index in (1, 2):
            layer = decoder_layers(model)[index]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    assert block_influence(model, batches(), Progress())[1] == pytest.approx(0.0, abs=1e-6)
    spec = DepthSpec(keep=2, importance=importance, protect_first=0, protect_last=0)
    ranking = choose_layers(model, spec, batches(), Progress())
    assert ranking.kept == [0, 3]
    torch.testing.assert_close(logits(with_layers(model, ranking.kept)), logits(model))


def test_the_chain_measures_what_the_whole_model_measures() -> None:
    model = make("qwen3")
    chain = LayerChain(model, batches())
    rises = chain.rise_without([0, 1, 2, 3], [1, 2])

    def loss(made: PreTrainedModel) -> float:
        total, count = 0.0, 0
        for batch in batches():
            ids, positions = batch["input_ids"], batch["position_ids"]
            with torch.no_grad():
                log_p = made(**batch, use_cache=False).logits.log_softmax(-1)
            for row in range(2):
                for place in range(15):
                    if positions[row, place + 1] != 0:
                        total -= float(log_p[row, place, ids[row, place + 1]])
                        count += 1
        return total / count

    for index in (1, 2):
        kept = [other for other in range(4) if other != index]
        assert rises[index] == pytest.approx(loss(with_layers(model, kept)) - loss(model), abs=1e-5)


def test_positions_are_spread_evenly_and_wrong_numbers_are_refused() -> None:
    model = make("llama")
    assert choose_layers(model, DepthSpec(keep=3, importance="uniform"), [], Progress()).kept == [0, 2, 3]
    assert choose_layers(model, DepthSpec(keep=2, importance="last"), [], Progress()).kept == [2, 3]
    with pytest.raises(RecipeError, match="keep = 5, but the teacher has 4"):
        choose_layers(model, DepthSpec(keep=5), batches(), Progress())
    with pytest.raises(RecipeError, match="0 to 3"):
        with_layers(model, [0, 4])
    with pytest.raises(RecipeError, match="heads = 3"):
        narrow(model, WidthSpec(heads=3), batches(), Progress())
    with pytest.raises(RecipeError, match="hidden = 26 is not a multiple of 4 heads"):
        narrow(model, WidthSpec(hidden=26), batches(), Progress())
    with pytest.raises(RecipeError, match="intermediate = 49, but the teacher has 48"):
        narrow(model, WidthSpec(intermediate=49), batches(), Progress())


def test_a_fresh_student_takes_the_template_and_what_differs(tiny_llama_folder: Path) -> None:
    tokenizer = load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))
    spec = StudentSpec.model_validate({"start": "config", "config": {"num_hidden_layers": 2, "hidden_size": 16}})
    teacher_spec = ModelSpec(model=str(tiny_llama_folder))
    builds = [build_student(spec, None, teacher_spec, tokenizer, None, None, Progress(), seed) for seed in (1, 1, 2)]
    first, same, other = (built.model.get_input_embeddings().weight for built in builds)
    assert first.shape[1] == 16
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    wrong = StudentSpec.model_validate({"start": "config", "config": {"n_layers": 2}})
    with pytest.raises(RecipeError, match="n_layers"):
        build_student(wrong, None, teacher_spec, tokenizer, None, None, Progress(), 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_start_as_nothing_train_alone_and_merge(family: str) -> None:
    model = make(family)
    before = logits(model)
    adapted = with_adapters(model, LoraSpec(rank=2), seed=0)
    torch.testing.assert_close(last_hidden(adapted, batches()[0]), last_hidden(model, batches()[0]))
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora" in name for name in names)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    trained = adapted(**batches()[0], use_cache=False).logits
    plain = merged(adapted)
    assert type(plain) is type(make(family))
    torch.testing.assert_close(logits(plain), trained.detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, trained)


def test_a_trimmed_vocabulary_cuts_the_corpus_as_before_and_writes_anything(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(model=str(tiny_llama_folder))
    tokenizer = load_tokenizer(spec)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    corpus = [
        "The Home Run Derby takes place every July; in 2016 Giancarlo Stanton hit 61 home runs.",
        "def area(r):\n    return 3.14159 * r ** 2  # naïve\n",
        "Ünïcödé — 漢字 and 😀 emoji.",
    ]
    ids = [tokenizer(text)["input_ids"] for text in corpus]
    counts = torch.bincount(torch.tensor([i for row in ids for i in row]), minlength=len(tokenizer))
    student = StudentSpec.model_validate({"vocabulary": {"minimum_count": 1}})
    built = build_student(student, teacher, spec, tokenizer, None, counts, Progress(), 0)
    assert built.kept_ids is not None
    assert len(built.kept_ids) < 1000
    save_model(built.model, built.tokenizer, tmp_path / "s")
    again = AutoTokenizer.from_pretrained(tmp_path / "s")
    assert len(again) == len(built.kept_ids)
    for text, old in zip(corpus, ids, strict=True):
        new = again(text)["input_ids"]
        assert built.kept_ids[torch.tensor(new)].tolist() == old
    foreign = "Quite other words: Zürich, \u0434\u043e\u043c, \t tabs and 12345."
    assert again.decode(again(foreign)["input_ids"], skip_special_tokens=True) == foreign
    assert again.eos_token == tokenizer.eos_token
    assert again.chat_template == tokenizer.chat_template
    assert built.kept_ids[again.eos_token_id] == tokenizer.eos_token_id
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "s").eval()
    with torch.no_grad():
        small = loaded(torch.tensor([again(corpus[0])["input_ids"]])).logits
        large = teacher(torch.tensor([ids[0]])).logits[..., built.kept_ids]
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-5)
    assert loaded.config.eos_token_id == again.eos_token_id


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    model = make("llama")
    model.config.model_type = "mamba"
    with pytest.raises(ModelError, match=r"mamba.*llama"):
        with_layers(model, [0])
