"""DPKD: preference of the teacher's answer to the student's, measured against the teacher."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="dpkd",
    title="Preference against the teacher (DPKD)",
    paper=Paper(
        title="Direct Preference Knowledge Distillation for Large Language Models",
        authors="Li et al.",
        year=2024,
        arxiv="2406.19774",
    ),
    summary="DPO whose reference is the teacher: the student shall prefer the teacher's answer at least as much.",
    formula="L = -log sigma(beta [log q(y_T) / p(y_T) - log q(y_S) / p(y_S)]),   beta = 0.1",
    fragment={
        "trajectories": {"source": "mixture", "mixture": {"paired": True, "teacher": {"start": 1.0}}},
        "objective": {
            "divergence": {"kind": "reverse_kl", "weight": 0.0},
            "preference": {"kind": "dpkd", "weight": 1.0, "beta": 0.1},
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "The formula of the publication, on whole answers that both models wrote. The code as released compares single "
        "tokens instead: each model's likeliest token at every position of the data set's text.",
        "The release adds half a cross-entropy on the data set's text, and one on a corpus for pre-training; neither "
        "is in the formula, nor here.",
        "Near its optimum the student copies the teacher's preferences, no more. The loss is a mean over pairs.",
    ),
)
