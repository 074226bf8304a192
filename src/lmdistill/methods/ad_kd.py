"""AD-KD: the student is to look at the same tokens for the same reasons."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="ad_kd",
    title="Attributions of every candidate class",
    paper=Paper(
        title="AD-KD: Attribution-Driven Knowledge Distillation for Language Model Compression",
        authors="Wu et al.",
        year=2023,
        arxiv="2305.10010",
    ),
    summary="Beside labels and predictions the student copies which tokens speak for which class.",
    formula=(
        "L = (1 - a) CE(y, q) + a tau² KL(p_tau ‖ q_tau) + b || g_p / ||g_p|| - g_q / ||g_q|| ||², g of a token "
        "the norm "
        "of its K largest attributions,   a = 0.9, tau = 4, b = 1"
    ),
    fragment={
        "task": {"kind": "sequence_classification"},
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.9, "temperature": 4.0, "temperature_squared": True},
            "cross_entropy": {"weight": 0.1},
            "hints": [{"kind": "attribution", "weight": 1.0, "parameters": {"steps": 1, "top": 700}}],
        },
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "Attributions are integrated gradients from the zero embedding, by one step, of the logits of all classes. The "
        "student's have a gradient themselves, so each class and step costs two backward passes more.",
        "K is published by task between 100 and 768 of 768 entries; where a model has fewer, all count.",
        "a, tau and b are one choice of the published grid.",
    ),
)
