"""Total variation distance, token by token, on the data set's text (f-distill)."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="total_variation",
    title="Token-level distillation, total variation",
    paper=Paper(
        title="f-Divergence Minimization for Sequence-Level Knowledge Distillation",
        authors="Wen et al.",
        year=2023,
        arxiv="2307.15190",
    ),
    summary="Half the absolute difference of the two distributions: symmetric, bounded by 1.",
    formula="L = 1/2 sum_v |p_v - q_v|",
    fragment={
        "objective": {"divergence": {"kind": "total_variation", "weight": 1.0}, "cross_entropy": {"weight": 0.0}}
    },
    notes=(
        "f-distill sums this distance over text of the teacher and text of the student; here it is taken on the data "
        "set's own text, or on the teacher's with trajectories.source: teacher.",
        "Only the sign of p - q enters the gradient, and each entry is scaled by q: a token that the student gives no "
        "probability is not learned. Start from a student that already speaks, or mix in cross-entropy.",
    ),
    aliases=("tvd",),
)
