"""What the teacher writes before training: chunk by chunk, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from writing import ENDS, VOCABULARY, prompts, tiny, write_naively

from lmdistill.errors import DataError, TrainingError
from lmdistill.progress import Progress
from lmdistill.recipe import GenerationSpec
from lmdistill.trajectories.teacher import Written, write_answers


class Tokenizer:
    """As much of one as is asked for."""

    eos_token_id = ENDS[0]
    pad_token_id = 0
    bos_token_id = 1

    def __len__(self) -> int:
        return VOCABULARY


def answers(teacher: Any, file: Path, given: list[list[int]], **fields: Any) -> list[Written]:
    spec = GenerationSpec(**{"max_new_tokens": 8, "batch_size": 2} | fields)
    tokenizer: Any = Tokenizer()
    load = teacher if callable(teacher) and not isinstance(teacher, torch.nn.Module) else lambda: teacher
    return write_answers(load, tokenizer, given, spec, file=file, seed=5, progress=Progress())


def test_each_chunk_is_the_text_of_one_prompt_after_another(tmp_path: Path) -> None:
    model, given = tiny(), prompts(11)
    found = answers(model, tmp_path / "answers.jsonl", given)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2  # chunks of four batches of two
    by_length = sorted(given, key=len)
    for number, item in enumerate(found):
        chunk, place = divmod(number, 8)
        assert item.prompt_ids == by_length[number]
        naive = write_naively(model, item.prompt_ids, place, seed=5 + chunk, limit=8)[0]
        end = naive.index(ENDS[0]) + 1 if ENDS[0] in naive else len(naive)
        assert item.answer_ids[:end] == naive[:end]
        assert item.finished == (item.answer_ids[-1] == ENDS[0])


def test_a_stopped_run_writes_what_is_missing_and_no_more(tmp_path: Path) -> None:
    model, given = tiny(), prompts(20)
    whole = answers(model, tmp_path / "whole.jsonl", given)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines()
    cut = tmp_path / "cut.jsonl"
    cut.write_text(lines[0] + "\n" + json.dumps({"batch": 1, "written": []}) + "\n" + lines[2][:40])
    assert answers(model, cut, given) == whole

    def none() -> Any:
        raise AssertionError("the teacher is not needed")

    assert answers(none, cut, given) == whole


@pytest.mark.parametrize("beams", [1, 3])
def test_greedy_and_beams_are_those_of_generate(beams: int, tmp_path: Path) -> None:
    model: Any = tiny()
    model.generation_config.eos_token_id = ENDS[0]
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY:] = 0  # generate knows nothing of padded rows
    for item in answers(model, tmp_path / "answers.jsonl", prompts(6), temperature=0.0, num_beams=beams):
        theirs = model.generate(
            torch.tensor([item.prompt_ids]), max_new_tokens=8, do_sample=False, num_beams=beams, pad_token_id=0
        )
        assert theirs[0, len(item.prompt_ids) :].tolist() == item.answer_ids


def test_several_samples_of_a_prompt_differ(tmp_path: Path) -> None:
    found = answers(tiny(), tmp_path / "answers.jsonl", [[5, 6], [7, 8, 9]], samples_per_prompt=4)
    assert [item.prompt_ids for item in found] == [[5, 6]] * 4 + [[7, 8, 9]] * 4
    assert len({tuple(item.answer_ids) for item in found}) > 5


def test_models_with_other_layers_write_through_generate(tmp_path: Path) -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        pad_token_id=0,
        eos_token_id=ENDS[0],
    )
    found = answers(Lfm2ForCausalLM(config).eval(), tmp_path / "answers.jsonl", prompts(5))
    assert len(found) == 5
    assert all(item.answer_ids for item in found)


def test_errors_keep_what_was_written(tmp_path: Path) -> None:
    model: Any = tiny()
    file = tmp_path / "answers.jsonl"
    with torch.no_grad():
        model.model.embed_tokens.weight[36] = float("nan")
    given = [[5]] * 8 + [[5, 36]]
    with pytest.raises(TrainingError, match=r"^the logits .* \(prompt 1 of 1\), .* what was written before is intact"):
        answers(model, file, given)
    assert len(file.read_text().splitlines()) == 1
    with pytest.raises(DataError, match="prompt 9 of 9"):
        answers(tiny(), tmp_path / "other.jsonl", [[5]] * 8 + [[5] * 90], batch_size=9)
