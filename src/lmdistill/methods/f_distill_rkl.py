"""f-distill, reverse KL: step by step, on text that the student samples."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="f_distill_rkl",
    title="f-distill, reverse KL on own samples",
    paper=Paper(
        title="f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        authors="Wen et al.",
        year=2023,
        arxiv="2307.15190",
    ),
    summary="Reverse KL of every step, on text that the student samples as training goes on.",
    formula="L = E[KL(q‖p) | y ~ q]",
    fragment={
        "trajectories": {"source": "student"},
        "objective": {"divergence": {"kind": "reverse_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "The publication's baseline ENGINE is this without the student's entropy: -sum q log p.",
        "No gradient goes through the sampling, as released; MiniLLM's policy gradient is what that leaves out.",
        "The mean is over the tokens of the step. opd_full has the same loss and comes from another tradition.",
    ),
)
