"""The nearest demonstrations by vectors of an encoder.

Shape legend: P demonstrations, H width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lmdistill.generation.demonstrations import Pool
from lmdistill.generation.retrieval.dual_encoder import DualEncoder
from lmdistill.generation.types import Seed


def nearest_by_vectors(pool: Pool, encoder: DualEncoder) -> Callable[[Seed, int], list[Seed]]:
    """Demonstrations by the product of their vectors with the question's, the best first; of equal ones the earlier."""
    vectors = {task: encoder.encode([shown_text(seed) for seed in held]) for task, held in pool.by_task.items()}

    def nearest(seed: Seed, count: int) -> list[Seed]:
        held = pool.by_task.get(seed.task, ())
        if not held:
            return []
        found_P = vectors[seed.task] @ encoder.encode([seed.prompt])[0]
        places = torch.argsort(found_P, descending=True, stable=True).tolist()
        return [held[place] for place in places if held[place].id != seed.id][:count]

    return nearest


def shown_text(seed: Seed) -> str:
    """What an encoder reads of a demonstration."""
    return f"{seed.prompt}\n{seed.answer}"
