"""Selective reflection-tuning."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="reflection_tuning",
    title="Selective reflection-tuning",
    paper=Paper(
        title="Selective Reflection-Tuning: Student-Selected Data Recycling for LLM Instruction-Tuning",
        authors="Li et al.",
        year=2024,
        arxiv="2402.10110",
    ),
    summary=("The teacher improves instructions and answers; the student's own difficulty decides which are kept."),
    formula=(
        "L = -sum_t log q(y_t | y_<t, x),   y = the selected answer;   IFD = PPL(y|x) / PPL(y) must "
        "rise, r-IFD = PPL(x|y') / PPL(x) must fall"
    ),
    fragment={
        "generation": {"maker": "reflect", "ask": {"temperature": 0.7, "max_tokens": 512}},
        "data": {"train": [{"path": "generated"}]},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
    },
    notes=(
        "IFD and r-IFD are measured with the student as it is when the round begins.",
        (
            "The pair of the seed stays where the teacher's is no harder, or its answer no easier to guess "
            "the instruction from."
        ),
    ),
)
