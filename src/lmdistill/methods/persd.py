"""Personalised distillation."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="persd",
    title="Personalised distillation",
    paper=Paper(
        title=("Personalized Distillation: Empowering Open-Sourced LLMs with Adaptive Learning for Code Generation"),
        authors="Chen et al.",
        year=2023,
        arxiv="2310.18628",
    ),
    summary=("The student tries first; where it fails, the teacher mends its attempt, and the student learns that."),
    formula=(
        "L = -sum_t log q(y_t | y_<t, x),   y = the student's failed attempt, mended;   x = the "
        "question, and the question with the attempt (combined)"
    ),
    fragment={
        "generation": {"maker": "refine", "ask": {"temperature": 0.3}, "refine": {"rows": "combined"}},
        "data": {"train": [{"path": "generated"}]},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"start": "teacher"},
    },
    notes=(
        (
            "Published for code with unit tests; here whatever generation.verify checks is the feedback. "
            "Questions that the student answers rightly are not trained on."
        ),
        ("The student needs a start that can fail in a sensible way: warm it up first (student.start: pretrained)."),
    ),
)
