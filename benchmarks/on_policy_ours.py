"""lmdistill's side of `on_policy.py`: the trainer as `lmdistill run` puts it together (`stages/jobs.py`).

Float32 weights and AdamW, mixed precision where the processor is faster in it, a teacher and a writing copy of the
student in that format: what a recipe gets without asking. The writer has as many slots as a window has prompts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from on_policy_turns import Turns, begin

from lmdistill.data import PromptRow, prompt_dataset
from lmdistill.models import fastest_dtype, load_model, load_tokenizer
from lmdistill.recipe import ModelSpec, ObjectiveSpec, TrajectoriesSpec
from lmdistill.stages.jobs import as_prompts
from lmdistill.stages.rollouts import end_ids
from lmdistill.teachers import LocalTeacher
from lmdistill.training.arguments import training_arguments
from lmdistill.training.objective import Objective
from lmdistill.training.trainer import DistillTrainer
from lmdistill.training.windows import Windows
from lmdistill.trajectories.length import LengthBudget
from lmdistill.trajectories.rollouts import LocalWriter
from lmdistill.trajectories.window import Trajectories

CPU = torch.device("cpu")


def main() -> None:
    """Train, a step at a time."""
    job, answers, parts = begin()
    fast = fastest_dtype(CPU)
    teacher = load_model(ModelSpec(model=job.teacher), dtype=fast, device=CPU)
    student = load_model(ModelSpec(model=job.student), dtype=torch.float32, device=CPU)
    tokenizer = load_tokenizer(ModelSpec(model=job.student))
    rows = [PromptRow(row["ids"], [], f"prompt {place}") for place, row in enumerate(job.rows())]
    spec = TrajectoriesSpec.model_validate(
        {
            "source": "student",
            "generation": {"max_new_tokens": job.new_tokens, "batch_size": job.batch * job.accumulation},
        }
    )
    objective = Objective(
        ObjectiveSpec.model_validate({"divergence": {"kind": job.divergence}}),
        teacher=LocalTeacher(teacher, len(tokenizer)),
        vocabulary_size=len(tokenizer),
        compute_dtype=None if fast == torch.float32 else fast,
    )
    writer = LocalWriter(spec.generation, end_ids=end_ids(tokenizer, student), vocabulary_size=len(tokenizer))

    def tell(kind: str, **facts: Any) -> None:
        parts.counts["tokens"] += facts["tokens"]
        parts.counts["texts"] += facts["texts"]

    texts = Trajectories(spec, writer, seed=0, budget=LengthBudget(spec.length, job.new_tokens, None), tell=tell)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillTrainer(
            model=student,
            args=training_arguments(
                {
                    "per_device_train_batch_size": job.batch,
                    "gradient_accumulation_steps": job.accumulation,
                    "max_steps": job.steps,
                    "learning_rate": job.learning_rate,
                    "lr_scheduler_type": "constant",
                    "warmup_steps": 0,
                    "save_strategy": "no",
                    "logging_steps": 1,
                    "train_sampling_strategy": "sequential",
                },
                folder=Path(folder),
                seed=0,
                device=CPU,
                fast_dtype=fast,
            ),
            train_dataset=prompt_dataset(rows),
            data_collator=as_prompts,
            processing_class=tokenizer,
            objective=objective,
            windows=Windows(texts, objective, contexts=False),
        )
        watched: Any = texts
        watched.window = parts.timed("rollout", texts.window)
        said: Any = objective.teacher
        said.speak = parts.timed("teacher", said.speak)
        trainer.add_callback(Turns(answers, parts))
        trainer.train()


if __name__ == "__main__":
    main()
