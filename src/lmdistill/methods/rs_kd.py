"""Random sampling KD: offline distillation from draws, unbiased at a dozen ids a token."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="rs_kd",
    title="Random sampling KD, from disk",
    paper=Paper(
        title="Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs",
        authors="Anshumann et al.",
        year=2025,
        arxiv="2503.16870",
    ),
    summary="The teacher's distribution is sampled once and kept as counts; their mean gradient is the exact one.",
    formula="L = -sum_v (c_v / N) log q_v,   c ~ Multinomial(N, p),   E[c / N] = p",
    fragment={
        "signals": {"kind": "sampled", "samples": 50},
        "objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
    },
    notes=(
        "Truncating to the top k is biased: the student learns the truncated distribution. Draws are not, and cost "
        "about a dozen distinct ids a token at 50 draws.",
        "signals.proposal_temperature above 1 draws more of the tail; the draws are then weighted and normalised, "
        "which is consistent but no longer unbiased. The authors find 1 best.",
        "signals.kind: top_and_sampled keeps the likeliest exactly and draws the rest: less noise at the same bytes.",
        "The value of the loss is a cross-entropy: it exceeds the divergence by the teacher's entropy.",
    ),
    aliases=("random_sampling_kd", "sparse_logit_sampling"),
)
