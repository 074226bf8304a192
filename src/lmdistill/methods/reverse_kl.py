"""Token-level distillation with the reverse KL, on the data set's text."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="reverse_kl",
    title="Token-level distillation, reverse KL",
    paper=Paper(
        title="MiniLLM: Knowledge Distillation of Large Language Models",
        authors="Gu et al.",
        year=2023,
        arxiv="2306.08543",
    ),
    summary="The student is punished for probability where the teacher has none, and may leave modes out.",
    formula="L = KL(q ‖ p) = sum_v q_v (log q_v - log p_v)",
    fragment={"objective": {"divergence": {"kind": "reverse_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}}},
    example={"student": {"depth": {"keep": 20}}},
    notes=(
        "This is the divergence that MiniLLM argues for, on the data set's own text. MiniLLM itself samples from the "
        "student and optimises whole sequences with policy gradients; its single-step term is the formula above.",
        "Far from the teacher its gradient is weak and noisy: start from a student that already speaks (fine-tuned, or "
        "a few hundred steps of forward_kl), as MiniLLM does.",
        "It lowers diversity; look at forward KL and calibration in the report, not at agreement alone.",
    ),
    aliases=("rkl",),
)
