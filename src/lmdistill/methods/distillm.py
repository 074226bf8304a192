"""DistiLLM: skew KL, with as much of the student's own text as the held-out loss asks for, much of it replayed."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="distillm",
    title="Skew KL with adaptive replay (DistiLLM)",
    paper=Paper(
        title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
        authors="Ko et al.",
        year=2024,
        arxiv="2402.03898",
    ),
    summary="The student's own text comes in where the held-out loss rises, and is used again from a buffer.",
    formula=(
        "L = KL(p ‖ alpha p + (1 - alpha) q),   alpha = 0.1, y ~ q with probability phi, which starts at 0 and rises "
        "by 0.1 with the held-out loss"
    ),
    fragment={
        "trajectories": {
            "source": "mixture",
            "mixture": {"replay": {"capacity": 1000, "start": 0.0, "rise": 0.1, "tolerance": 0.1}},
        },
        "objective": {
            "divergence": {"kind": "skew_forward_kl", "weight": 1.0, "parameters": {"alpha": 0.1}},
            "cross_entropy": {"weight": 0.0},
        },
        "training": {"eval_strategy": "steps", "eval_steps": 50},
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "phi only moves when held-out text is scored: it needs data.evaluation and training.eval_strategy. As "
        "released, a loss is compared with the one at the last rise; where none rises, all text stays the data set's.",
        "A text is written anew with probability phi (1 - progress) and while the buffer is not full, else drawn from "
        "the buffer, as released; there, whole batches are chosen so, here single samples.",
        "The publication's other divergence is skew_reverse_kl at the same alpha, KL(q ‖ alpha q + (1 - alpha) p).",
        "The release adds cross-entropy on OpenWebText, and trains GPT-2 with learning rate 5e-4, cosine schedule, "
        "weight decay 0.01 and 20 epochs. Its loss is a mean over the tokens of a micro-batch, here of the step.",
    ),
)
