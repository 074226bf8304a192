"""Speculative distillation: the student drafts, the teacher replaces what it finds unlikely."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="speculative_kd",
    title="Interleaved text (SKD)",
    paper=Paper(
        title="Speculative Knowledge Distillation: Bridging the Teacher-Student Gap Through Interleaved Sampling",
        authors="Xu et al.",
        year=2024,
        arxiv="2410.11325",
    ),
    summary="A drafted token stays if it is among the teacher's 25 likeliest; else the teacher draws one.",
    formula="L = E[KL(p‖q) | y interleaved],   y_t ~ q if among the 25 likeliest of p, else y_t ~ p",
    fragment={
        "trajectories": {"source": "student", "interleaved": {"top_k": 25, "replacement": "sample"}},
        "objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "Early in training nearly all tokens are the teacher's, later the student's: a curriculum without a schedule.",
        "interleaved.draft_tokens changes the time that writing takes, not the text. top_k: 1 is the teacher's greedy "
        "text, a large one the student's own.",
        "Any divergence can be taken on the text; the mean is over the tokens of the step.",
    ),
    aliases=("skd",),
)
