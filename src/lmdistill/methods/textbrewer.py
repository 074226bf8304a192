"""TextBrewer's preset: similarities and states of evenly spaced layers, and softened predictions."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="textbrewer",
    title="Similarities and states, evenly spaced",
    paper=Paper(
        title="TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural Language Processing",
        authors="Yang et al.",
        year=2020,
        arxiv="2002.12620",
    ),
    summary=(
        "Softened predictions by cross-entropy, hidden states by their squared distance and by the similarities of "
        "positions within a text."
    ),
    formula=(
        "L = -tau² sum p_tau log q_tau + mean_m MSE(h_q^m W, h_p^g(m)) + mean_m MSE(S_q^m, S_p^g(m)), S_ij = h_i "
        "h_j / H,   "
        "tau = 8, g(m) = m N / M"
    ),
    fragment={
        "task": {"kind": "sequence_classification", "logits": {"kind": "soft_cross_entropy", "over_classes": False}},
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0, "temperature": 8.0, "temperature_squared": True},
            "cross_entropy": {"weight": 0.0},
            "hints": [
                {"kind": "hidden_mse", "positions": "all", "projector": {"kind": "linear"}},
                {"kind": "similarity", "positions": "all"},
            ],
        },
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "What its examples call L3_hidden_mse and L3_hidden_smmd, together. Its other matches are hints too: "
        "attention_mse, attention_kl (attention_ce), gram and fsp, hidden_cosine (cos), hidden_normalised_mse (pkd).",
        "Its losses count padding; here it does not count.",
        "kd_loss_type: mse is task.logits.kind: logits_mse; its temperature schedulers have no counterpart.",
    ),
)
