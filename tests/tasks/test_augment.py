"""Rows made of others, and the LSTM student as a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer

from lmdistill.data import Document
from lmdistill.recipe import ModelSpec
from lmdistill.recipe.task import AugmentSpec, BiLstmSpec
from lmdistill.tasks import students
from lmdistill.tasks.augment import MaskedWords, Neighbours, augmented
from lmdistill.tasks.models import load_task_model, outputs
from lmdistill.tasks.rows import Example
from small_task import WORDS, tiny_encoder

CPU = torch.device("cpu")


def example(text: str, pair: str | None = None) -> Example:
    return Example(text, pair, None, "label", Document(text=text))


def test_replacements_are_those_of_the_draws_and_what_is_between_words_stays() -> None:
    def candidates(text: str, words: object) -> list[list[str]]:
        return [["X", "Y"], [], ["Z"]]

    rows = augmented([example("one, two -- three!")], AugmentSpec(probability=1.0, copies=8), candidates, seed=0)
    assert {row.text for row in rows} == {"X, two -- Z!", "Y, two -- Z!"}  # equal copies once
    assert all(row.label is None for row in rows)
    assert rows == augmented(
        [example("one, two -- three!")], AugmentSpec(probability=1.0, copies=8), candidates, seed=0
    )
    assert augmented([example("one, two -- three!")], AugmentSpec(probability=0.0), candidates, seed=0) == []


def test_each_word_is_replaced_as_often_as_the_recipe_says() -> None:
    rows = augmented(
        [example(" ".join(["word"] * 40))],
        AugmentSpec(probability=0.4, copies=100),
        lambda text, words: [["x"]] * len(words),
        seed=3,
    )
    share = sum(row.text.split().count("x") for row in rows) / (40 * len(rows))
    assert 0.37 < share < 0.43  # 4000 draws: 5 standard errors


def test_both_sides_of_a_pair_are_replaced() -> None:
    rows = augmented(
        [example("a b", "c d")], AugmentSpec(probability=1.0, copies=1), lambda text, words: [["q"]] * 2, seed=0
    )
    assert [(row.text, row.pair) for row in rows] == [("q q", "q q")]


def test_neighbours_are_the_nearest_whole_words_by_cosine(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder(tmp_path))
    table = torch.randn(len(tokenizer), 6, generator=torch.Generator().manual_seed(0))
    found = Neighbours(table, tokenizer, 3).of("cat")
    vocabulary = tokenizer.get_vocab()
    whole = [token for token in vocabulary if token.isalpha() and token != "cat"]
    unit = {token: table[vocabulary[token]] / table[vocabulary[token]].norm() for token in [*whole, "cat"]}
    assert found == sorted(whole, key=lambda token: -float(unit[token] @ unit["cat"]))[:3]


def test_a_masked_model_names_words_for_the_places_of_single_pieces(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, _ = load_task_model(ModelSpec(model=str(folder)), "masked_lm", [], dtype=torch.float32, device=CPU, seed=0)
    near = Neighbours(model.get_input_embeddings().weight, tokenizer, 2)
    text = "the cat zebra"
    found = MaskedWords(model, tokenizer, near, 2)(text, ["the", "cat", "zebra"])
    assert found[2] == near.of("zebra")  # several pieces
    encoded = tokenizer("the [MASK] zebra", return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0, 2]
    allowed = {token: number for token, number in tokenizer.get_vocab().items() if token.isalpha()}
    best = sorted(allowed, key=lambda token: -float(logits[allowed[token]]))
    assert found[1] == [token for token in best[:3] if token != "cat"][:2]


def test_an_lstm_student_is_saved_and_loaded_with_its_numbers(tmp_path: Path) -> None:
    teacher, _ = load_task_model(
        ModelSpec(model=str(tiny_encoder(tmp_path))), "masked_lm", [], dtype=torch.float32, device=CPU, seed=0
    )
    model, description = students.bilstm(BiLstmSpec(hidden=5, projection=7), teacher, ["a", "b", "c"], seed=1)
    torch.testing.assert_close(model.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    assert description["parameters_after"] == sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "lstm")
    again, missing = load_task_model(
        ModelSpec(model=str(tmp_path / "lstm")),
        "sequence_classification",
        ["a", "b", "c"],
        dtype=torch.float32,
        device=CPU,
        seed=9,
    )
    assert not missing
    batch = {"input_ids": torch.tensor([[2, 6, 7, 3], [2, 8, 3, 0]]), "attention_mask": torch.ones(2, 4).long()}
    batch["attention_mask"][1, 3] = 0
    kind = "sequence_classification"
    with torch.no_grad():
        own, loaded = outputs(model, batch, kind), outputs(again, batch, kind)
        torch.testing.assert_close(own, loaded)
        # Padding has no effect, and mixed embeddings go in where ids do.
        alone = {name: value[1:, :3] for name, value in batch.items()}
        torch.testing.assert_close(outputs(model, alone, kind), own[1:])
        embeds = model.get_input_embeddings()(batch["input_ids"])
        torch.testing.assert_close(outputs(model, batch, kind, embeds=embeds), own)


def test_a_mobilebert_has_the_teachers_shape_outside_and_its_own_inside(tmp_path: Path) -> None:
    from lmdistill.models import load_config
    from lmdistill.recipe.task import BottleneckSpec

    teacher = load_config(ModelSpec(model=str(tiny_encoder(tmp_path))))
    spec = BottleneckSpec(width=16, embedding=16, feed_forwards=2)
    model, _ = students.bottleneck(spec, teacher, "sequence_classification", ["a", "b"], seed=0)
    assert model.config.num_hidden_layers == teacher.num_hidden_layers
    assert model.config.hidden_size == teacher.hidden_size
    assert model.config.intra_bottleneck_size == 16
    assert len(WORDS) < model.config.vocab_size
