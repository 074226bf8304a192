"""TRL's side of `on_policy.py`: its DistillationTrainer, in one of the ways in which it can be set on a processor."""

from __future__ import annotations

import tempfile
from typing import Any

from datasets import Dataset
from on_policy_turns import Turns, begin
from trl import DistillationConfig, DistillationTrainer

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
SETTINGS: dict[str, dict[str, Any]] = {
    # Everything in float32.
    "float32": {"bf16": False},
    # TRL's default (bf16), with the frozen teacher's weights in bfloat16 too.
    "autocast": {"bf16": True, "teacher_model_init_kwargs": {"dtype": "bfloat16"}},
    # Weights, moments of AdamW and all arithmetic in bfloat16.
    "bfloat16": {
        "bf16": True,
        "model_init_kwargs": {"dtype": "bfloat16"},
        "teacher_model_init_kwargs": {"dtype": "bfloat16"},
    },
}
"""Besides these: `static` behind a name is transformers' static cache for generation."""


def main() -> None:
    """Train, a step at a time."""
    job, answers, parts = begin()
    rows = job.rows()
    name, _, cache = job.setting.partition("+")
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            model=job.student,
            teacher_model=job.teacher,
            args=DistillationConfig(
                output_dir=folder,
                use_cpu=True,
                per_device_train_batch_size=job.batch,
                gradient_accumulation_steps=job.accumulation,
                max_steps=job.steps,
                learning_rate=job.learning_rate,
                lr_scheduler_type="constant",
                save_strategy="no",
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                shuffle_dataset=False,
                gradient_checkpointing=False,  # TRL's default recomputes every layer; there is memory enough here
                max_completion_length=job.new_tokens,
                temperature=1.0,
                beta=BETA[job.divergence],
                cache_implementation=cache or None,
                seed=0,
                **SETTINGS[name],
            ),
            train_dataset=Dataset.from_list([{"prompt": row["text"]} for row in rows]),
        )

        def wrote(found: dict[str, Any]) -> None:
            parts.counts["tokens"] += int(found["completion_mask"].sum())
            parts.counts["texts"] += len(found["completion_mask"])

        trainer._generate_and_score_completions = parts.timed("rollout", trainer._generate_and_score_completions, wrote)
        body = trainer.teacher_model.base_model
        body.forward = parts.timed("teacher", body.forward)
        trainer.add_callback(Turns(answers, parts))
        trainer.train()


if __name__ == "__main__":
    main()
