"""The one Trainer: `transformers.Trainer` with another way from a batch to a loss.

FSDP2, DeepSpeed, mixed precision, accumulation, schedules, callbacks and trackers are accelerate's and the Trainer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from accelerate.utils import DistributedType, extract_model_from_parallel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmdistill.errors import NonFiniteLoss
from lmdistill.training.budget import Clock
from lmdistill.training.ledger import LossLedger
from lmdistill.training.objective import Objective, StepLoss
from lmdistill.training.twins import TWIN_PAIRS, count_twins
from lmdistill.training.windows import Windows, WindowSampler


class DistillTrainer(Trainer):
    """Trains a student by an `Objective`; supervised fine-tuning is the objective without a teacher.

    Batches hold `input_ids`, `labels` (not shifted, -100 where nothing is trained) and `position_ids`, and under
    `row_ids` the names of the samples of each row, by which errors speak of them.
    """

    # The loss is divided by the tokens of the whole accumulated batch, so the Trainer must not divide it again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        heldout_scores: Callable[[nn.Module], dict[str, float]] | None = None,
        windows: Windows | None = None,
        clock: Clock | None = None,
        **kwargs: Any,
    ) -> None:
        """`heldout_scores` measures the student for `eval_strategy`; `windows` writes the texts of each optimiser step,
        where batches are lists of prompts (`lmdistill.data.PromptRow`); the rest is the Trainer's.
        """
        if heldout_scores is not None:
            # The Trainer wants a data set before it evaluates; `evaluate` below does not look at it.
            kwargs.setdefault("eval_dataset", kwargs.get("train_dataset"))
        super().__init__(*args, **kwargs)
        self.objective: Objective = objective
        self.heldout_scores = heldout_scores
        self.windows = windows
        self.clock = clock or Clock()
        self.add_callback(self.clock)
        # The Trainer infers these two from the model's signature; ours holds for every causal model: the number of
        # trained tokens of the accumulated batch is wanted, counted over the shifted labels.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        hints = getattr(objective, "hints", None)
        if hints is not None:
            hints.progress = self.progress
            hints.step = lambda: self.state.global_step
        self.ledger = LossLedger()
        self.callback_handler.callbacks.insert(0, self.ledger)
        self.add_callback(FiniteGradients())
        self.add_callback(ForgetGradients())

    def progress(self) -> float:
        """The share of training that is done."""
        return self.clock.progress(self.state.global_step, self.state.max_steps)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's optimiser; what is trained beside the student (projections) is a group of its own."""
        made = self.optimizer is None
        optimiser = super().create_optimizer(*args, **kwargs)
        beside = self._beside()
        if made and beside:
            hints = getattr(self.objective, "hints", None)
            groups = [{"params": beside}] if hints is None else hints.parameter_groups()
            for group in groups:
                optimiser.add_param_group({**group, "weight_decay": 0.0})
        return optimiser

    def _beside(self) -> list[nn.Parameter]:
        """What is trained beside the student."""
        projectors = getattr(self.objective.aligned, "projectors", None) or getattr(self.objective, "hints", None)
        return [] if projectors is None else list(projectors.parameters())

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The Trainer's clipping, of the student and what is trained beside it as one vector.

        Where the student's own clipping is FSDP's or DeepSpeed's, theirs alone.
        """
        beside = self._beside()
        own = (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if not beside or self.accelerator.distributed_type in own:
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        return self.accelerator.clip_grad_norm_([*model.parameters(), *beside], self.args.max_grad_norm)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimiser step, and how many tokens are trained in them, on all ranks."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.windows is None or not batches:
            if self.objective.spec.consistency.weight > 0:
                pairs = self._over_ranks(count_twins(batches))[0]
                batches = [{**batch, TWIN_PAIRS: pairs} for batch in batches]
            return batches, num_items
        written = self.windows(
            batches,
            step=self.state.global_step,
            progress=self.clock.progress(self.state.global_step, self.state.max_steps),
            model=extract_model_from_parallel(self.model),
            place=self._prepare_inputs,
            total=self._over_ranks,
        )
        return written, self._get_num_items_in_batch(written, device)

    def _over_ranks(self, counts: Tensor) -> Tensor:
        """Counts of this rank, summed over all."""
        counts = counts.to(self.args.device)
        if self.args.world_size <= 1:
            return counts
        gathered: Tensor = self.accelerator.gather(counts[None])
        return gathered.sum(0)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        reuse = 1 if self.windows is None else self.windows.trajectories.spec.rollouts.reuse
        if reuse == 1:
            return super()._get_train_sampler(train_dataset)
        arguments = self.args
        per_step = self._train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        return WindowSampler(len(cast(Any, self.train_dataset)), per_step, reuse, arguments.seed)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss of one micro-batch. Raises NonFiniteLoss before anything is updated."""
        bare = extract_model_from_parallel(model)
        step = self.objective(model, bare, inputs, num_items_in_batch)
        self._refuse_non_finite(step, inputs)
        self.ledger.add(
            loss=step.loss,
            divergence=step.divergence,
            cross_entropy=step.cross_entropy,
            hidden_cosine=step.hidden_cosine,
            **step.others,
        )
        loss = step.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # Gradients are averaged over ranks, but the divisor counts the tokens of all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out scores in place of the Trainer's evaluation loop."""
        if self.heldout_scores is None:
            return {}
        with self.clock.pause():
            scores = self.heldout_scores(extract_model_from_parallel(self.model))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _refuse_non_finite(self, step: StepLoss, inputs: Mapping[str, Any]) -> None:
        if torch.isfinite(step.loss):
            return
        bad_B = (~torch.isfinite(step.token_loss_BL)).any(-1)
        rows = inputs.get("row_ids") or [[f"row {index}"] for index in range(len(bad_B))]
        names = [name for row, bad in zip(rows, bad_B.tolist(), strict=True) if bad for name in row]
        shown = ", ".join(map(str, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise NonFiniteLoss(
            f"step {self.state.global_step + 1}: the loss is {float(step.loss.detach())}; the step was not taken; the "
            f"last checkpoint is intact. Samples: {shown or 'none alone'}. Look at them, lower training.learning_rate "
            f"(now {self.args.learning_rate}), or train in float32"
        )


class ForgetGradients(TrainerCallback):
    """Takes the gradients of everything that the optimiser moves away after its step.

    The Trainer does so for the student alone: those of projections would be added up over the whole training.
    """

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called between the optimiser's step and the next batch."""
        kwargs["optimizer"].zero_grad()


class FiniteGradients(TrainerCallback):
    """Stops before an optimiser step whose gradient is NaN or infinite."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises NonFiniteLoss naming the step."""
        model = kwargs["model"]
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            names = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            raise NonFiniteLoss(
                f"step {state.global_step + 1}: the gradient of {len(names)} parameters is not finite (first: "
                f"{names[0] if names else 'their norm alone'}); the step was not taken and the last checkpoint is "
                f"intact. Lower training.learning_rate (now {args.learning_rate}) or set training.max_grad_norm"
            )
