"""A tiny student as GGUF: what is in the file, and what a real llama.cpp says with it."""

from __future__ import annotations

import json
import sys
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
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lmdistill.errors import ModelError, StorageError
from lmdistill.export.architectures import KNOWN, Architecture
from lmdistill.export.gguf_file import read_gguf, write_gguf
from lmdistill.export.llamacpp_check import check_with_llamacpp
from lmdistill.export.source import find_student, load_student
from lmdistill.export.vocabulary import pre_tokenizer_name
from lmdistill.models import load_tokenizer, save_model
from lmdistill.recipe import ModelSpec

sys.path.append(str(Path(__file__).parents[1] / "data"))
from tokenizers_for_tests import CHATML, make_tokenizer

pytest.importorskip("gguf")
CPU = torch.device("cpu")
LLAMACPP_TOLERANCE = 0.03
"""Nats between llama.cpp and transformers on one token: llama.cpp keeps keys and values in f16."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A small one: gguf's reader takes seconds for a real vocabulary."""
    return make_tokenizer("chatml", CHATML)


@pytest.fixture(scope="module")
def real_tokenizer(tiny_llama_folder: Path) -> Any:
    return load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))


def odd_llama(tokenizer: Any, **changes: Any) -> LlamaForCausalLM:
    """As pruning leaves one: heads wider together than the hidden channels, an unusual number of neurons."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.2, **{**sizes, **heads, **changes})
    return LlamaForCausalLM(config).eval()


def test_what_is_written_is_read_back_by_us_and_by_transformers(tokenizer: Any, tmp_path: Path) -> None:
    model = odd_llama(tokenizer)
    assert write_gguf(model, tokenizer, tmp_path / "s.gguf", "f32", "student", "apache-2.0") == []
    ours = read_gguf(tmp_path / "s.gguf", model.config).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="s.gguf", dtype=torch.float32).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(ours[name], value), name
        assert torch.equal(theirs[name], value), name
    cut = AutoTokenizer.from_pretrained(tmp_path, gguf_file="s.gguf")
    assert cut("Hello 1234 <|im_end|>")["input_ids"] == tokenizer("Hello 1234 <|im_end|>")["input_ids"]
    assert cut.eos_token_id == tokenizer.eos_token_id
    assert cut.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(("kind", "bound"), [("f16", 5e-4), ("bf16", 4e-3), ("q8_0", 5e-3), ("q4_0", 0.13)])
def test_a_quantised_matrix_is_off_by_no_more_than_its_kind(
    kind: str, bound: float, tokenizer: Any, tmp_path: Path
) -> None:
    model = odd_llama(tokenizer, num_hidden_layers=1)
    write_gguf(model, tokenizer, tmp_path / "s.gguf", kind, "student", "")
    found = read_gguf(tmp_path / "s.gguf", model.config).get_parameter("model.layers.0.mlp.up_proj.weight")
    wanted = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    error = float(((found - wanted).abs().max() / wanted.abs().max()).detach())
    assert 0 < error < bound


def test_rows_that_do_not_divide_into_blocks_stay_in_f16_and_this_is_said(tokenizer: Any, tmp_path: Path) -> None:
    model = odd_llama(tokenizer, intermediate_size=72)
    notes = write_gguf(model, tokenizer, tmp_path / "s.gguf", "q8_0", "student", "")
    assert notes == ["2 matrices stay in f16: their rows are no multiple of q8_0's blocks"]
    name = "model.layers.1.mlp.down_proj.weight"
    found = read_gguf(tmp_path / "s.gguf", model.config).get_parameter(name)
    assert torch.equal(found, model.get_parameter(name).half().float())


@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_says_what_transformers_says(tied: bool, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    tokenizer = request.getfixturevalue("real_tokenizer" if tied else "tokenizer")
    model = odd_llama(tokenizer, attention_bias=True, tie_word_embeddings=tied)
    torch.nn.init.normal_(model.model.layers[0].self_attn.q_proj.bias)
    write_gguf(model, tokenizer, tmp_path / "s.gguf", "f32", "student", "")
    prompts = [tokenizer("The quick brown fox")["input_ids"], tokenizer("In 1969")["input_ids"]]
    back = read_gguf(tmp_path / "s.gguf", model.config)
    check, rate = check_with_llamacpp(tmp_path / "s.gguf", back, tokenizer, prompts, 12, threads=1)
    assert check.probes_equal == check.probes
    assert check.tokens == check.tokens_equal
    assert check.tokens == 24  # of the small vocabulary too, whose answers hold characters in pieces
    assert check.max_difference is not None
    assert check.max_difference < LLAMACPP_TOLERANCE
    assert rate > 0


def test_the_check_sees_rows_in_the_wrong_order(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    model = odd_llama(tokenizer)
    monkeypatch.setitem(KNOWN, "llama", Architecture("llama", interleaved=False))
    write_gguf(model, tokenizer, tmp_path / "s.gguf", "f32", "student", "")
    prompts = [tokenizer("The quick brown fox jumps over the lazy dog")["input_ids"]]
    check, _ = check_with_llamacpp(tmp_path / "s.gguf", model, tokenizer, prompts, 12, threads=1)
    assert check.tokens_equal < check.tokens / 2


def make_qwen3(tokenizer: Any) -> Any:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=32,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2, max_position_embeddings=128,
        )
    )  # fmt: skip


def make_gemma3(tokenizer: Any) -> Any:
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=6, head_dim=32,
            num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2, max_position_embeddings=128,
            query_pre_attn_scalar=32, sliding_window=8,
        )
    )  # fmt: skip


@pytest.mark.slow
def test_a_sentencepiece_vocabulary_in_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    cut = make_tokenizer("gemma")
    model = odd_llama(cut)
    write_gguf(model, cut, tmp_path / "s.gguf", "f32", "student", "")
    back = read_gguf(tmp_path / "s.gguf", model.config)
    check, _ = check_with_llamacpp(tmp_path / "s.gguf", back, cut, [cut("A fox")["input_ids"]], 8, threads=1)
    assert check.probes_equal == check.probes
    assert check.tokens == check.tokens_equal


def make_llama3_rope(tokenizer: Any) -> Any:
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return odd_llama(tokenizer, rope_parameters={**rope, "original_max_position_embeddings": 64})


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_qwen3, make_gemma3, make_llama3_rope])
def test_other_architectures_in_llama_cpp(make: Any, real_tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    tokenizer = real_tokenizer
    torch.manual_seed(5)
    model = make(tokenizer).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if "gemma" not in model.config.model_type else 0.0, 0.1)
    write_gguf(model, tokenizer, tmp_path / "s.gguf", "f32", "student", "")
    prompts = [tokenizer("The quick brown fox jumps over the lazy dog near the river")["input_ids"]]
    back = read_gguf(tmp_path / "s.gguf", model.config)
    for name, value in model.state_dict().items():
        assert torch.allclose(back.state_dict()[name], value, atol=1e-6), name
    check, _ = check_with_llamacpp(tmp_path / "s.gguf", back, tokenizer, prompts, 16, threads=1)
    assert check.tokens == 16
    assert check.tokens_equal >= 15  # f16 keys and values may exchange two that are all but equal
    assert check.max_difference is not None
    assert check.max_difference < LLAMACPP_TOLERANCE


def test_an_unknown_architecture_names_the_known_ones(tokenizer: Any, tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=1))
    with pytest.raises(ModelError, match=r"'gpt2'.*these can: llama, mistral, qwen2, qwen3, gemma3_text"):
        write_gguf(model, tokenizer, tmp_path / "s.gguf", "f16", "student", "")
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_older_file_alone(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "s.gguf"
    target.write_bytes(b"an older export")
    huge = odd_llama(tokenizer, num_hidden_layers=1)
    torch.nn.init.constant_(huge.model.layers[0].mlp.up_proj.weight, 1e6)
    with pytest.raises(ModelError, match=r"1e\+06 is beyond f16 \(65504\); export as bf16"):
        write_gguf(huge, tokenizer, target, "f16", "student", "")
    import gguf

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_gguf(huge, tokenizer, target, "bf16", "student", "")
    assert [path.name for path in tmp_path.iterdir()] == ["s.gguf"]
    assert target.read_bytes() == b"an older export"


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {"type": "ByteLevel", "use_regex": True},
                ],
            },
            "smollm",
        ),
    ],
)
def test_the_name_of_a_pre_tokenizer_comes_from_what_it_does(pre: dict[str, Any], name: str) -> None:
    assert pre_tokenizer_name({"pre_tokenizer": pre}) == name


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"'Whitespace'.*known: gpt-2, smollm, llama-bpe, qwen2"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "prefix"),
        ({"pre_tokenizer": None, "normalizer": {"type": "Lowercase"}}, r"alters text \(Lowercase\)"),
    ],
)
def test_an_unknown_pre_tokenizer_is_refused(description: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        pre_tokenizer_name(description)


def test_folders_that_are_no_students(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        find_student(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no student \(neither config.json nor adapter_config.json"):
        find_student(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights"):
        find_student(tmp_path)


def test_layers_of_different_widths_are_refused_with_both(tokenizer: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "student"
    save_model(odd_llama(tokenizer), tokenizer, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("gate", "up"):
        key = f"model.layers.1.mlp.{name}_proj.weight"
        tensors[key] = tensors[key][:80].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"is \[96, 64\] in layer 0 and \[80, 64\] in layer 1"):
        load_student(find_student(folder), torch.float32, CPU)


def test_a_model_that_does_not_write_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    save_model(odd_llama(tokenizer, num_hidden_layers=1), tokenizer, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(
        json.dumps({**config, "architectures": ["LlamaForTokenClassification"]})
    )
    with pytest.raises(ModelError, match="a LlamaForTokenClassification does not write text"):
        load_student(find_student(tmp_path / "m"), torch.float32, CPU)
