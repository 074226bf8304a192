"""Without data: texts that models write, and a generator against a student, on vision transformers and encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmdistill.errors import RecipeError
from lmdistill.recipe import ModelSpec
from lmdistill.recipe.task import SelfSampledSpec
from lmdistill.tasks.data_free import (
    DataFreeSettings,
    ImageGenerator,
    TokenGenerator,
    distil_without_data,
    kl,
    read_images,
    read_soft_text,
)
from lmdistill.tasks.models import load_task_model
from lmdistill.tasks.sampled import sampled_texts
from small_task import tiny_encoder


def vision(layers: int, seed: int, width: int = 32) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
    )
    return ViTForImageClassification(config)


def agreement(student: Any, teacher: Any, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        return float(
            (read_images(student, inputs).argmax(-1) == read_images(teacher, inputs).argmax(-1)).float().mean()
        )


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Scikit-learn's digits as images of about unit variance, and their classes."""
    loaded = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None]
    return (images - images.mean()) / images.std(), torch.tensor(loaded.target)


def test_a_vision_transformer_learns_digits_that_it_never_saw() -> None:
    """A teacher that knows scikit-learn's digits teaches a shallower student by what a generator makes."""
    images, labels = digits()
    teacher = vision(2, seed=1)
    optimiser = torch.optim.AdamW(teacher.parameters(), lr=2e-3)
    for step in range(90):
        part = torch.randint(1500, (64,), generator=torch.Generator().manual_seed(step))
        loss = torch.nn.functional.cross_entropy(read_images(teacher, images[part]), labels[part])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    teacher.eval()
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = vision(1, seed=2)
    student.eval()
    before = agreement(student, teacher, images[1500:])
    settings = DataFreeSettings(rounds=25, batch=32, noise=16, student_rate=2e-3)
    history = distil_without_data(student, teacher, ImageGenerator(16, 8, width=16), read_images, settings)
    after = agreement(student, teacher, images[1500:])
    assert len(history) == 25
    assert after > before + 0.15, (before, after)
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())


def test_an_encoder_reads_soft_texts_of_its_own_words(tmp_path: Path) -> None:
    models = [
        load_task_model(
            ModelSpec(model=str(tiny_encoder(tmp_path, layers))),
            "sequence_classification",
            ["a", "b"],
            dtype=torch.float32,
            device=torch.device("cpu"),
            seed=layers,
        )[0]
        for layers in (2, 4)
    ]
    generator = TokenGenerator(8, 5, range(5, 20), models[0].config.vocab_size)
    soft = generator(torch.randn(3, 8))
    assert soft.shape == (3, 5, models[0].config.vocab_size)
    torch.testing.assert_close(soft.sum(-1), torch.ones(3, 5))
    assert not soft[..., :5].any()
    with torch.no_grad():
        models[1].classifier.weight *= 30  # a random head says the same of everything
        fixed = generator(torch.randn(32, 8))

    def distance() -> float:
        with torch.no_grad():
            return float(kl(read_soft_text(models[0], fixed), read_soft_text(models[1], fixed)))

    before = distance()
    settings = DataFreeSettings(rounds=12, batch=8, noise=8, student_steps=3)
    distil_without_data(models[0], models[1], generator, read_soft_text, settings)
    assert distance() < 0.5 * before
    assert all(parameter.grad is not None for parameter in generator.body.parameters())


def test_the_distance_of_the_game_is_kl_with_gradient_for_both() -> None:
    torch.manual_seed(0)
    s, t = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    p, q = t.softmax(-1), s.softmax(-1)
    wanted = (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(kl(s, t), wanted)
    for own, right in zip(torch.autograd.grad(kl(s, t), [s, t]), torch.autograd.grad(wanted, [s, t]), strict=True):
        torch.testing.assert_close(own, right)


def test_widths_that_differ_are_said_with_both_numbers() -> None:
    settings = DataFreeSettings(rounds=1, batch=4, noise=4)
    with pytest.raises(RecipeError, match="patches of 16 and 32 numbers"):
        distil_without_data(vision(1, 0, width=16), vision(2, 1), ImageGenerator(4, 8, width=8), read_images, settings)
    with pytest.raises(RecipeError, match="10 pixels a side"):
        ImageGenerator(4, 10)


def test_a_masked_model_writes_from_masks_alone_the_same_each_time(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tiny_encoder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, missing = load_task_model(
        ModelSpec(model=str(folder)), "masked_lm", [], dtype=torch.float32, device=torch.device("cpu"), seed=0
    )
    assert not missing
    spec = SelfSampledSpec(rows=6, length=4, passes=2)
    first = sampled_texts(model, tokenizer, spec, seed=1)
    assert first == sampled_texts(model, tokenizer, spec, seed=1)
    assert first != sampled_texts(model, tokenizer, spec, seed=2)
    assert 1 <= len(first) <= 6


def test_a_causal_model_writes_from_its_start_token(tiny_llama_folder: Path) -> None:
    from lmdistill.models import load_model, load_tokenizer

    spec = ModelSpec(model=str(tiny_llama_folder))
    model = load_model(spec, dtype=torch.float32, device=torch.device("cpu"))
    texts = sampled_texts(model, load_tokenizer(spec), SelfSampledSpec(rows=3, length=5), seed=1)
    assert 1 <= len(texts) <= 3
    assert texts == sampled_texts(model, load_tokenizer(spec), SelfSampledSpec(rows=3, length=5), seed=1)
