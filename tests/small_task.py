"""Overrides that make a recipe with a task small: a random encoder with few words, and two dozen labelled rows."""

from __future__ import annotations

import json
from pathlib import Path

from lmdistill.recipe import Recipe

ANIMALS = ("cat", "dog", "horse", "bird")
TOOLS = ("hammer", "saw", "drill", "nail")
WORDS = (*ANIMALS, *TOOLS, "the", "a", "old", "new", "runs", "lies", "here", "there", "and", "sleeps", "breaks")


def tiny_encoder(folder: Path, layers: int = 4) -> Path:
    """A random BERT of 48 numbers with a vocabulary of whole words; made once in a folder. It knows nothing."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    from lmdistill.models import save_model

    target = folder / f"tiny-encoder-{layers}"
    if not target.is_dir():
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        letters = [*"abcdefghijklmnopqrstuvwxyz.0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
        vocabulary = {token: number for number, token in enumerate([*special, *WORDS, *letters])}
        tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True)
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=0,
        )
        save_model(BertForMaskedLM(config), tokenizer, target)
    return target


def labelled_file(folder: Path) -> Path:
    """Rows that speak of an animal or of a tool, as pairs of sentences and as labelled words; made once in a folder."""
    path = folder / "labelled.jsonl"
    if not path.is_file():
        rows = []
        for number in range(40):
            kind = ("animal", "tool")[number % 2]
            noun = (ANIMALS, TOOLS)[number % 2][number // 2 % 4]
            first = (
                f"the {('old', 'new')[number // 8 % 2]} {noun} {('runs', 'lies', 'breaks')[number % 3]} here {number}"
            )
            words = first.split()
            rows.append(
                {
                    "text": first,
                    "second": f"a {noun} sleeps there",
                    "label": kind,
                    "words": words,
                    "tags": ["B-NOUN" if word == noun else "O" for word in words],
                    "number": float(len(noun)) + 0.01 * number,
                }
            )
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task_overrides(plain: Recipe, folder: Path, speed: bool = False) -> list[str]:
    """What makes a recipe with a task small; what it says about the method stays."""
    task = plain.task
    assert task is not None
    source = f"{{path: {labelled_file(folder)}, part: train, heldout_share: 0.3}}"
    columns = ["task.text=text", "task.text_pair=second", "task.label=label"]
    if task.kind == "token_classification":
        columns = ["task.text=words", "task.label=tags"]
    elif task.text_pair is None and task.kind == "sequence_classification":
        columns = ["task.text=text", "task.label=label"]
    elif task.kind in ("masked_lm", "sentence_embedding"):
        columns = ["task.text=text", "task.text_pair=second", "task.label=null"]
    columns += [f"task.{field}=null" for field in ("label_pattern", "labels") if getattr(task, field) is not None]
    overrides = [
        *columns,
        f"teacher.model={tiny_encoder(folder)}",
        f"data.train=[{source}]",
        f"data.evaluation={{held: {source.replace('part: train', 'part: heldout')}}}",
        "data.max_length=24",
        "training.max_steps=2",
        "training.per_device_train_batch_size=8",
        "task.teacher.training={max_steps: 2}",
        "evaluation.bootstrap_samples=100",
        "evaluation.speed={repeats: 1}" if speed else "evaluation.speed=null",
    ]
    student = plain.student
    if student.depth is not None:
        overrides.append("student.depth.keep=2")
    if student.start == "config":
        overrides.append("student.config={num_hidden_layers: 2}")
    if task.bottleneck is not None:
        overrides.append("task.bottleneck={width: 16, embedding: 16, feed_forwards: 2}")
    if task.augment is not None:
        overrides.append("task.augment.copies=1")
    if task.self_sampled is not None:
        writer = f"{{model: {tiny_encoder(folder)}}}"
        overrides.append(f"task.self_sampled={{rows: 8, length: 6, passes: 1, model: {writer}}}")
    for number, stage in enumerate(plain.stages):
        if stage.pruning is not None:
            overrides += [f"stages.{number}.pruning.{field}" for field in ("intermediate=32", "every=1")]
            if stage.pruning.hidden is not None:
                overrides += [f"stages.{number}.pruning.{field}" for field in ("heads=2", "hidden=24")]
    return overrides
