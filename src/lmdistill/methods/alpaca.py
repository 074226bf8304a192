"""Alpaca's single pass."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="alpaca",
    title="Alpaca's single pass",
    paper=Paper(
        title="Stanford Alpaca: An Instruction-following LLaMA Model",
        authors="Taori et al.",
        year=2023,
        url="https://github.com/tatsu-lab/stanford_alpaca",
    ),
    summary="The teacher writes whole tasks, with input and output, several in one answer.",
    formula="L = -sum_t log q(y_t | y_<t, x),   y = the output that came with the task x",
    fragment={
        "generation": {"maker": "alpaca", "ask": {"temperature": 1.0, "max_tokens": 1024}},
        "data": {"train": [{"path": "generated"}]},
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "teacher": {"serve": "llamacpp", "model": "smollm2-135m"},
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
    },
    notes=(
        (
            "Simpler than Self-Instruct: no classification, one instance a task. Published with 20 tasks an "
            "answer (generation.instructions.per_request), 52,000 in all."
        ),
        "Asked for as JSON with a schema here, which small teachers keep to; published as a numbered list.",
    ),
)
