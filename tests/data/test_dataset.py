"""Documents to packed sequences, batches, and proof that packed documents do not see each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers_for_tests as family
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

from lmdistill.data import Collator, DataReport, Document, build_dataset, fingerprint, token_counts
from lmdistill.errors import DataError
from lmdistill.progress import Progress
from lmdistill.recipe import DataSpec, SourceSpec

TOKENIZER = family.make_tokenizer("chatml", family.CHATML)


def data_spec(**values) -> DataSpec:
    return DataSpec(**{"train": [SourceSpec(path="x.jsonl")], "max_length": 48, **values})


def build(documents, tokenizer=TOKENIZER, seed=0, **values):
    report = DataReport()
    dataset = build_dataset(documents, tokenizer, data_spec(**values), seed=seed, report=report, progress=Progress())
    return dataset, report


def plain(count: int) -> list[Document]:
    words = " ".join(family.CORPUS).split()
    return [Document(text=" ".join(words[n % 9 : n % 9 + 2 + n % 7]) + f" {n}", origin=f"x:{n}") for n in range(count)]


TALK = Document(
    messages=[{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "It is four."}],
    origin="x:1",
)


def test_columns_of_packed_sequences() -> None:
    documents = [*plain(30), TALK]
    dataset, report = build(documents)
    by_id = {document.id: document for document in documents}
    seen = []
    for row in dataset:
        starts = [at for at, position in enumerate(row["position_ids"]) if position == 0]
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["position_ids"]) <= 48
        assert len(starts) == len(row["row_ids"])
        for row_id, start, end in zip(row["row_ids"], starts, [*starts[1:], len(row["input_ids"])], strict=True):
            seen.append(row_id)
            ids, labels = row["input_ids"][start:end], row["labels"][start:end]
            assert row["position_ids"][start:end] == list(range(end - start))
            assert labels[0] == -100
            assert all(label in (-100, token_id) for label, token_id in zip(labels, ids, strict=True))
            document = by_id[row_id]
            if document.text is not None:
                assert TOKENIZER.decode(ids) == document.text + "<|im_end|>"
                assert labels[1:] == ids[1:]
            else:
                assert TOKENIZER.decode([label for label in labels if label != -100]) == "It is four.<|im_end|>"
    assert sorted(seen) == sorted(by_id)
    assert report.sequences == len(dataset) < len(documents) / 3
    assert report.tokens == sum(map(len, dataset["input_ids"]))
    assert report.trained_tokens == sum(label != -100 for labels in dataset["labels"] for label in labels)
    assert report.fill == report.tokens / (len(dataset) * 48) > 0.85
    assert report.fingerprint == fingerprint(dataset)


def test_without_packing_a_sequence_is_a_row() -> None:
    dataset, report = build(plain(30), packing=False)
    assert len(dataset) == report.sequences == 30
    assert all(len(ids) == 1 for ids in dataset["row_ids"])


def test_order_depends_on_the_seed_alone() -> None:
    documents = plain(40)
    same = build(documents)[1].fingerprint
    assert build(list(reversed(documents)))[1].fingerprint == same
    assert build(documents, seed=1)[1].fingerprint != same
    unshuffled, _ = build(documents, shuffle=False, packing=False)
    assert [ids[0] for ids in unshuffled["row_ids"]] == [document.id for document in documents]


def test_nothing_to_train_on_is_an_error_with_counts() -> None:
    report = DataReport(rows_read=2)
    with pytest.raises(DataError, match=r"no row has a token to train on \(2 rows read: 2 without a trained token\)"):
        build_dataset(
            [Document(prompt="Hi"), Document(prompt="Ho")],
            TOKENIZER,
            data_spec(),
            seed=0,
            report=report,
            progress=Progress(),
        )
    with pytest.raises(DataError, match="3 too long"):
        build([Document(text=family.CORPUS[0] * 3 + str(n)) for n in range(3)], truncation="drop")


def test_a_row_that_is_too_long_is_named() -> None:
    with pytest.raises(DataError, match=r"x:1: \d+ tokens, more than max_length 10"):
        build([TALK], truncation="error", max_length=10)


def test_progress_counts_the_documents() -> None:
    counted = []

    class Counting(Progress):
        """Keeps what is advanced."""

        def task(self, name, total=None, unit=""):
            from contextlib import contextmanager

            @contextmanager
            def made():
                class Task:
                    def advance(self, amount=1, **shown):
                        counted.append(amount)

                assert total == 7
                yield Task()

            return made()

    build_dataset(plain(7), TOKENIZER, data_spec(), seed=0, report=DataReport(), progress=Counting())
    assert sum(counted) == 7


# --- fingerprint and counts -----------------------------------------------------------------------------------------


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    import datasets

    dataset, report = build(plain(40))
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert fingerprint(datasets.load_from_disk(str(tmp_path / "saved"))) == report.fingerprint
    halves = datasets.concatenate_datasets([dataset.select(range(3)), dataset.select(range(3, len(dataset)))])
    assert fingerprint(halves) == report.fingerprint
    assert fingerprint(datasets.Dataset.from_list(list(dataset))) == report.fingerprint
    assert fingerprint(dataset.select(range(1, len(dataset)))) != report.fingerprint
    rows = list(dataset)
    assert fingerprint(datasets.Dataset.from_list([rows[1], rows[0], *rows[2:]])) != report.fingerprint
    rows[0] = {**rows[0], "labels": [*rows[0]["labels"][:-1], -100]}
    assert fingerprint(datasets.Dataset.from_list(rows)) != report.fingerprint


def test_token_counts() -> None:
    dataset, report = build(plain(40))
    counts_V = token_counts(dataset, len(TOKENIZER))
    assert counts_V.shape == (len(TOKENIZER),)
    assert counts_V.sum() == report.tokens
    assert counts_V[TOKENIZER.eos_token_id] == 40
    part = token_counts(dataset.select([1]), len(TOKENIZER))
    assert part.sum() == len(dataset[1]["input_ids"])
    with pytest.raises(DataError, match=r"id \d+ in the data, but the vocabulary has 300 tokens"):
        token_counts(dataset, 300)


# --- batches --------------------------------------------------------------------------------------------------------


def test_collator_pads_with_a_row_of_its_own() -> None:
    dataset, _ = build(plain(30))
    rows = sorted(dataset, key=lambda row: len(row["input_ids"]))
    rows = [rows[0], rows[-1]]
    batch = Collator(pad_id=5)(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    assert lengths[0] < lengths[1]
    for index, row in enumerate(rows):
        end = lengths[index]
        for name in ("input_ids", "labels", "position_ids"):
            assert batch[name].shape == (2, lengths[1])
            assert batch[name].dtype == torch.long
            assert batch[name][index, :end].tolist() == row[name]
        assert batch["row_ids"][index] == row["row_ids"]
        assert (batch["labels"][index, end:] == -100).all()
        assert (batch["input_ids"][index, end:] == 5).all()
        assert batch["position_ids"][index, end:].tolist() == list(range(lengths[1] - end))


def test_collator_works_in_loader_processes() -> None:
    dataset, _ = build(plain(30))
    loaders = [
        torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=Collator(), num_workers=workers)
        for workers in (0, 1)
    ]
    for one, other in zip(*loaders, strict=True):
        assert one["row_ids"] == other["row_ids"]
        assert torch.equal(one["input_ids"], other["input_ids"])


SHAPE = {
    "vocab_size": 500,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    # a window shorter than the documents, so that the sliding mask is at work too
    "gemma3": Gemma3TextConfig(
        **SHAPE, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "gpt2": GPT2Config(vocab_size=500, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
}


def random_model(name: str, attention: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()
    for parameter in model.parameters():  # large, so that a look across documents shows
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_do_not_see_each_other(name: str, attention: str) -> None:
    model = random_model(name, attention)
    dataset, _ = build(plain(12), max_length=32)
    alone = {row["row_ids"][0]: row["input_ids"] for row in build(plain(12), packing=False)[0]}
    with torch.no_grad():
        logits_alone = {
            row_id: model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for row_id, ids in alone.items()
        }
        for size in (1, 3):
            checked = 0
            for first in range(0, len(dataset), size):
                batch = Collator()(list(dataset.select(range(first, min(first + size, len(dataset))))))
                row_ids = batch.pop("row_ids")
                batch.pop("labels")
                logits_BLV = model(**batch, use_cache=False).logits
                for logits_LV, ids in zip(logits_BLV, row_ids, strict=True):
                    at = 0
                    for row_id in ids:
                        end = at + len(alone[row_id])
                        torch.testing.assert_close(logits_LV[at:end], logits_alone[row_id], atol=1e-4, rtol=1e-4)
                        at, checked = end, checked + 1
            assert checked == 12


def test_a_cache_would_let_packed_documents_see_each_other() -> None:
    """Why models must be called with use_cache=False: transformers then takes the positions for a continuation. If this
    fails one day, the rule is no longer needed."""
    model = random_model("llama", "sdpa")
    dataset, _ = build(plain(12), max_length=32)
    batch = {name: torch.tensor([dataset[0][name]]) for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        right, wrong = (model(**batch, use_cache=cached).logits for cached in (False, True))
    second = dataset[0]["position_ids"].index(0, 1)
    torch.testing.assert_close(right[0, :second], wrong[0, :second], atol=1e-4, rtol=1e-4)
    assert (right[0, second:] - wrong[0, second:]).abs().max() > 0.1


PROBE = """
import json, sys
from lmdistill.data import DataReport, Document, build_dataset
from lmdistill.progress import Progress
from lmdistill.recipe import DataSpec, SourceSpec
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
documents = [Document(text=text) for text in json.load(open(sys.argv[2]))]
spec = DataSpec(train=[SourceSpec(path="x.jsonl")], max_length=48)
report = DataReport()
build_dataset(documents, tokenizer, spec, seed=0, report=report, progress=Progress())
print(report.fingerprint)
"""


def test_the_fingerprint_is_the_same_in_any_process(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "texts.json").write_text(json.dumps([document.text for document in plain(40)]))
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "tokenizer"), str(tmp_path / "texts.json")],
        env={**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TOKENIZERS_PARALLELISM": "true"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == build(plain(40))[1].fingerprint
