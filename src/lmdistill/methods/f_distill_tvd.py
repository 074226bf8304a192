"""f-distill, total variation: half of it on the teacher's samples, half on the student's."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="f_distill_tvd",
    title="f-distill, total variation, both samples",
    paper=Paper(
        title="f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        authors="Wen et al.",
        year=2023,
        arxiv="2307.15190",
    ),
    summary="Both models answer each prompt, and total variation is taken on both answers.",
    formula="L = 0.5 E[TVD(p, q) | y ~ p] + 0.5 E[TVD(p, q) | y ~ q],   TVD = 0.5 sum_v |p_v - q_v|",
    fragment={
        "trajectories": {"source": "mixture", "mixture": {"paired": True, "teacher": {"start": 1.0}}},
        "objective": {
            "divergence": {"kind": "total_variation", "weight": 0.5},
            "student_divergence": {"kind": "total_variation", "weight": 0.5},
            "cross_entropy": {"weight": 0.0},
        },
    },
    example={
        "student": {"depth": {"keep": 16}},
        "trajectories": {"generation": {"prompt_tokens": 32, "max_new_tokens": 48}},
    },
    notes=(
        "The publication's symmetric variant. total_variation is the same distance on the data set's text.",
        "Each expectation is a mean over the tokens of its own texts in the step.",
        "The gradient is bounded by the student's probabilities: a token that the student finds impossible is hardly "
        "learnt. Start from a student that can write.",
    ),
)
