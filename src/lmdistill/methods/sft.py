"""Supervised fine-tuning: no teacher at all, the baseline that every distillation has to beat."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="sft",
    title="Supervised fine-tuning (the baseline)",
    paper=Paper(
        title="Improving Language Understanding by Generative Pre-Training",
        authors="Radford et al.",
        year=2018,
        url="https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf",
    ),
    summary="Cross-entropy with the data set's own text; the teacher is not asked.",
    formula="L = -log q(y)",
    fragment={
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
        "trajectories": {"source": "dataset"},
    },
    notes=(
        "Every run can train this beside itself on the same text for the same number of steps: "
        "evaluation.baselines holds `sft` unless you take it out.",
        "The teacher still matters for the student's start (student.start: teacher) and for the evaluation.",
    ),
)
