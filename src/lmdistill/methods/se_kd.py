"""SE-KD: distil at the positions where the student is least certain."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="se_kd",
    title="Positions chosen by the student's entropy",
    paper=Paper(
        title="Rethinking Selective Knowledge Distillation",
        authors="Tavor et al.",
        year=2026,
        arxiv="2602.01395",
    ),
    summary="Only the share of tokens where the student's distribution has the highest entropy is distilled.",
    formula="L = mean over the top share of H(q) of KL(p ‖ q)",
    fragment={
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0},
            "cross_entropy": {"weight": 0.0},
            "tokens": {"by": "student_entropy", "keep": 0.2},
        }
    },
    notes=(
        "The share is taken within each micro-batch; weights make up for what is left out, so that the learning rate "
        "need not change.",
        "The student's head is projected once more to find the entropies; what is left out is not projected by the "
        "loss, so at a share below about a half a step costs less than without it.",
        "objective.tokens.by: divergence and position choose otherwise.",
    ),
)
