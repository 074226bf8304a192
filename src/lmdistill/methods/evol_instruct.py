"""Evol-Instruct."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="evol_instruct",
    title="Evol-Instruct",
    paper=Paper(
        title="WizardLM: Empowering Large Language Models to Follow Complex Instructions",
        authors="Xu et al.",
        year=2023,
        arxiv="2304.12244",
    ),
    summary=(
        "The teacher rewrites instructions into harder and rarer ones, generation after generation, and answers them."
    ),
    formula="L = -sum_t log q(y_t | y_<t, x),   y = the teacher's answer to the evolved instruction x",
    fragment={
        "generation": {"maker": "evolve", "ask": {"temperature": 1.0}, "evolve": {"generations": 4}},
        "data": {"train": [{"path": "generated"}]},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
    },
    notes=(
        (
            "Five rewritings in depth and one in breadth, drawn at random. What gains nothing, copies the "
            "request, or is answered with sorry or nothing is eliminated; its parent goes on."
        ),
        ("Small teachers often answer an instruction where they should rewrite it; look at the report's samples."),
    ),
)
