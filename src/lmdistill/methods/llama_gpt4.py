"""Answers of a stronger model."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="llama_gpt4",
    title="Answers of a stronger model",
    paper=Paper(
        title="Instruction Tuning with GPT-4",
        authors="Peng et al.",
        year=2023,
        arxiv="2304.03277",
    ),
    summary="The teacher answers instructions that are there already, and the student learns its answers.",
    formula="L = -sum_t log q(y_t | y_<t, x),   y = the teacher's answer to the given instruction x",
    fragment={
        "generation": {"maker": "answers", "ask": {"temperature": 1.0}},
        "data": {"train": [{"path": "generated"}]},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
    },
    notes=(
        (
            "Published with GPT-4's answers to Alpaca's 52,000 instructions, in English and in Chinese; the "
            "instructions stay as they are."
        ),
        (
            "Verify the answers where the seeds have one of their own (generation.verify): what is wrong is "
            "then left out."
        ),
    ),
)
