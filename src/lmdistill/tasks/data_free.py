"""Distillation without data: a generator makes what both models read (vision transformers 2408.05952, and encoders).

The generator and the student play against each other: the generator looks for inputs on which the student differs from
its teacher (L_adv = - distance) and on which both attend alike (L_attention), so that it does not leave what attention
can make sense of; the student learns the teacher's predictions, its hard labels, and its patches' states on them.

Shape legend: B inputs, L positions, Z noise, H width, C classes, V vocabulary, v words that are written, S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmdistill.errors import RecipeError
from lmdistill.objectives.hints import attention_kl, hidden_mse
from lmdistill.training.anatomy import blocks_of
from lmdistill.training.layer_maps import mapped_layers
from lmdistill.training.taps import Place, Taps


@dataclass(frozen=True)
class DataFreeSettings:
    """Weights and step sizes; the paper names the terms and tunes their weights, these are ours."""

    rounds: int = 200
    """Rounds of `generator_steps` steps of the generator and `student_steps` of the student."""
    generator_steps: int = 1
    student_steps: int = 5
    batch: int = 64
    noise: int = 64
    """Z."""
    attention_weight: float = 1.0
    """lambda of L_attention."""
    balance_weight: float = 1.0
    """Weight of the negative entropy of the mean prediction: without it a generator soon makes one class alone (DAFL,
    1904.01186, eq. 6)."""
    label_weight: float = 0.5
    """Weight of cross-entropy with the teacher's likeliest class (l_CE)."""
    patch_weight: float = 0.1
    """Weight of the squared distance of patches' states (l_patch); 0 where widths differ."""
    generator_rate: float = 1e-3
    student_rate: float = 1e-3
    seed: int = 0


@dataclass
class Round:
    """What a round came to."""

    distance: float
    """KL(teacher‖student) of the student's last step."""
    attention: float
    """Difference of attention on what the generator made."""


Call = Callable[[nn.Module, Tensor], Tensor]
"""Class logits (B, C) of a model for what a generator made."""


class ImageGenerator(nn.Module):
    """Noise to images of S x S pixels: a linear map, then convolutions that double the side (as DAFL's)."""

    def __init__(self, noise: int, side: int, channels: int = 1, width: int = 64) -> None:
        """Raises RecipeError where the side is no multiple of 4."""
        super().__init__()
        if side % 4:
            raise RecipeError(f"images of {side} pixels a side; the generator makes multiples of 4")
        self._first = (width, side // 4, side // 4)
        self.start = nn.Linear(noise, width * (side // 4) ** 2)
        self.body = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, channels, 3, padding=1),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, noise_BZ: Tensor) -> Tensor:
        """Images of about unit variance, (B, channels, S, S)."""
        found: Tensor = self.body(self.start(noise_BZ).unflatten(1, self._first))
        return found


class TokenGenerator(nn.Module):
    """Noise to soft texts: at each position a distribution over word pieces, sharpened, (B, L, V).

    A model reads it as the mean of its own word embeddings, so that student and teacher may have different tables and
    the generator's gradient passes through.
    """

    def __init__(self, noise: int, length: int, vocabulary: Sequence[int], size: int, width: int = 128) -> None:
        """`vocabulary` are the ids that may be written, of `size` in all."""
        super().__init__()
        self.length = length
        self.size = size
        self.register_buffer("ids", torch.tensor(list(vocabulary)), persistent=False)
        self.start = nn.Linear(noise, length * width)
        self.body = nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, len(vocabulary)))

    def forward(self, noise_BZ: Tensor) -> Tensor:
        """Distributions over the whole vocabulary, (B, L, V)."""
        soft_BLv = F.gumbel_softmax(self.body(self.start(noise_BZ).unflatten(1, (self.length, -1))), tau=0.5)
        whole = soft_BLv.new_zeros(*soft_BLv.shape[:2], self.size)
        ids: Any = self.ids
        return whole.index_copy(2, ids, soft_BLv)


def read_soft_text(model: nn.Module, soft_BLV: Tensor) -> Tensor:
    """Class logits of an encoder for soft texts."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    found: Tensor = model(inputs_embeds=soft_BLV @ table.weight).logits
    return found


def read_images(model: nn.Module, images: Tensor) -> Tensor:
    """Class logits of a vision transformer of transformers (`.logits`) or of timm (a tensor)."""
    found = model(images)
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return logits


def distil_without_data(
    student: nn.Module,
    teacher: nn.Module,
    generator: nn.Module,
    call: Call,
    settings: DataFreeSettings,
    *,
    tell: Callable[[int, Round], None] = lambda number, found: None,
) -> list[Round]:
    """Train the student in place; the teacher stays as it is. Returns what each round came to."""
    torch.manual_seed(settings.seed)
    teacher.eval().requires_grad_(False)
    device = next(student.parameters()).device
    pair = _Pair(student, teacher, call, settings)
    moves_student = torch.optim.AdamW(student.parameters(), lr=settings.student_rate, weight_decay=0.0)
    moves_generator = torch.optim.Adam(generator.parameters(), lr=settings.generator_rate)
    history = []
    try:
        for number in range(settings.rounds):
            for _ in range(settings.generator_steps):
                made = generator(torch.randn(settings.batch, settings.noise, device=device))
                loss, attention = pair.generator_loss(made)
                moves_generator.zero_grad()
                loss.backward()
                moves_generator.step()
            student.train()
            for _ in range(settings.student_steps):
                with torch.no_grad():
                    made = generator(torch.randn(settings.batch, settings.noise, device=device))
                loss, distance = pair.student_loss(made)
                moves_student.zero_grad()
                loss.backward()
                moves_student.step()
            student.eval()
            history.append(Round(float(distance.detach()), float(attention.detach())))
            tell(number, history[-1])
    finally:
        pair.close()
    return history


class _Pair:
    """Both models, their taps, and the two losses."""

    def __init__(self, student: nn.Module, teacher: nn.Module, call: Call, settings: DataFreeSettings) -> None:
        self.models = (student, teacher)
        self.call = call
        self.settings = settings
        depths = [len(blocks_of(model)) for model in self.models]
        self.pairs = mapped_layers("uniform", depths[0], depths[1])
        self.taps = [
            Taps(model, [Place(kind, pair[side]) for pair in self.pairs for kind in ("hidden", "scores")])
            for side, model in enumerate(self.models)
        ]

    def close(self) -> None:
        """Leave both models as they were."""
        for taps in self.taps:
            taps.close()

    def generator_loss(self, made: Tensor) -> tuple[Tensor, Tensor]:
        """L_adv + lambda L_attention + balance, and L_attention."""
        (student_BC, teacher_BC), caught = self._read(made)
        attention = torch.stack(
            [
                attention_kl(caught[0][Place("scores", own)], caught[1][Place("scores", other)], heads="mean")
                for own, other in self.pairs
            ]
        ).mean()
        mean_C = teacher_BC.softmax(-1).mean(0)
        balance = (mean_C * mean_C.clamp_min(1e-12).log()).sum()
        loss = -kl(student_BC, teacher_BC) + self.settings.attention_weight * attention
        return loss + self.settings.balance_weight * balance, attention

    def student_loss(self, made: Tensor) -> tuple[Tensor, Tensor]:
        """l_KD + l_CE + l_patch, and l_KD."""
        (student_BC, teacher_BC), caught = self._read(made)
        distance = kl(student_BC, teacher_BC.detach())
        loss = distance + self.settings.label_weight * F.cross_entropy(student_BC, teacher_BC.argmax(-1))
        if self.settings.patch_weight:
            states = [(caught[0][Place("hidden", own)], caught[1][Place("hidden", other)]) for own, other in self.pairs]
            if states[0][0].shape[-1] != states[0][1].shape[-1]:
                raise RecipeError(
                    f"patches of {states[0][0].shape[-1]} and {states[0][1].shape[-1]} numbers cannot be compared: set "
                    "patch_weight to 0"
                )
            patches = torch.stack([hidden_mse(own, other) for own, other in states]).mean()
            loss = loss + self.settings.patch_weight * patches
        return loss, distance

    def _read(self, made: Tensor) -> tuple[tuple[Tensor, Tensor], list[dict[Place, Tensor]]]:
        logits = []
        for model, taps in zip(self.models, self.taps, strict=True):
            with taps.capture():
                logits.append(self.call(model, made))
        caught = [{place: taps.take(place) for place in taps.places} for taps in self.taps]
        return (logits[0], logits[1]), caught


def kl(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """KL(teacher‖student), mean over inputs, with gradient through both: the generator's needs the teacher's too."""
    log_s, log_t = student_BC.log_softmax(-1), teacher_BC.log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()
