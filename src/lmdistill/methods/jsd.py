"""Generalised Jensen-Shannon divergence between teacher and student, on the data set's text."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="jsd",
    title="Token-level distillation, generalised JSD",
    paper=Paper(
        title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        authors="Agarwal et al.",
        year=2023,
        arxiv="2306.13649",
    ),
    summary="A bounded divergence between forward and reverse KL; one weight moves it from one to the other.",
    formula="L = w KL(p ‖ m) + (1 - w) KL(q ‖ m),   m = w p + (1 - w) q, w = teacher_weight = 0.5",
    fragment={
        "objective": {
            "divergence": {"kind": "jsd", "weight": 1.0, "parameters": {"teacher_weight": 0.5}},
            "cross_entropy": {"weight": 0.0},
        }
    },
    notes=(
        "GKD's divergence on the data set's own text, which is GKD with lambda = 0. GKD's advantage comes largely from "
        "text that the student writes.",
        "teacher_weight is GKD's beta (they try 0.1, 0.5 and 0.9). Papers disagree: DistiLLM's lambda weights the "
        "student, so its 0.9 is 0.1 here.",
        "Near the ends the gradient vanishes: at w near 0 the loss is about w KL(p‖q), at w near 1 about "
        "(1 - w) KL(q‖p). Raise objective.divergence.weight accordingly; the ends themselves are refused.",
    ),
    aliases=("gen_jsd",),
)
