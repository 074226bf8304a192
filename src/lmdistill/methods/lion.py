"""Lion: adversarial distillation."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="lion",
    title="Lion: adversarial distillation",
    paper=Paper(
        title="Lion: Adversarial Distillation of Proprietary Large Language Models",
        authors="Jiang et al.",
        year=2023,
        arxiv="2305.12870",
    ),
    summary=(
        "In rounds, the student imitates, a referee finds where it falls behind, and the teacher writes "
        "more of that kind."
    ),
    formula=(
        "L = -sum_t log q(y_t | y_<t, x),   y = the teacher's answer;   x hard where mean score of the "
        "teacher - mean score of the student >= 1"
    ),
    fragment={
        "generation": {"maker": "adversarial", "ask": {"temperature": 1.0}, "rounds": 3},
        "data": {"train": [{"path": "generated"}]},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"start": "teacher"},
    },
    notes=(
        (
            "Each round is a training stage (round-1, round-2, ...); the referee scores both answers in both"
            " orders, from 1 to 10."
        ),
        (
            "New instructions: as many hard as easy ones, ROUGE-L at most 0.7 to all others. Published: "
            "6,000 a round, temperature 1."
        ),
        (
            "The referee is the teacher's own model. A referee of 135 million parameters gives scores of the"
            " right form and little sense: take a large one."
        ),
    ),
)
