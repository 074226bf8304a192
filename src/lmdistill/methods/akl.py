"""Adaptive KL: forward and reverse KL weighted by where the student is wrong."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="akl",
    title="Adaptive KL",
    paper=Paper(
        title="Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models",
        authors="Wu et al.",
        year=2024,
        arxiv="2404.02657",
    ),
    summary="Forward KL where the gap lies in the teacher's likely tokens, reverse KL where it lies in the tail.",
    formula="L = w_h KL(p ‖ q) + (1 - w_h) KL(q ‖ p),   w_h = gap on the head / whole gap, head mass mu = 0.5",
    fragment={
        "objective": {
            "divergence": {"kind": "adaptive_kl", "weight": 1.0, "parameters": {"mu": 0.5}},
            "cross_entropy": {"weight": 0.0},
        }
    },
    notes=(
        "The head is the teacher's likeliest tokens up to the mass mu, the likeliest always; the gap is |p - q|. The "
        "weights are held fixed in the gradient.",
        "An implementation in circulation multiplies a mask in sorted order with gaps in vocabulary order; the "
        "authors' own code sorts both, and so does this.",
        "The paper's reason: with enough training both directions reach the same optimum, but in few epochs forward KL "
        "fits the head first and reverse KL the tail.",
    ),
    aliases=("adaptive_kl",),
)
