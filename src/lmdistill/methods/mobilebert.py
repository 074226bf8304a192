"""MobileBERT: as deep as the teacher, with bottlenecks; layer after layer learns to copy the teacher's."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="mobilebert",
    title="Bottlenecks, layer by layer",
    paper=Paper(
        title="MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
        authors="Sun et al.",
        year=2020,
        arxiv="2004.02984",
    ),
    summary=(
        "Feature maps and attention are copied layer after layer from the bottom, then masked tokens are learnt from "
        "text and teacher, then the task."
    ),
    formula=(
        "L = MSE(h_q^m, h_p^m) + KL(A_p^m ‖ A_q^m) of one layer m after another, then "
        "L = a CE(masked tokens, q) + (1 - a) KL(p ‖ q), then L = CE(y, q),   a = 0.5"
    ),
    fragment={
        "task": {"kind": "sequence_classification", "bottleneck": {"width": 96, "embedding": 128, "feed_forwards": 4}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.0},
            "hints": [
                {"kind": "hidden_mse", "positions": "all", "over_layers": "sum", "only_current": True},
                {"kind": "attention_kl", "positions": "all", "over_layers": "sum", "only_current": True},
            ],
        },
        "stages": [
            {"name": "transfer", "task": "masked_lm", "unfreeze": {"order": "bottom_up", "mode": "one"}},
            {
                "name": "pretrain",
                "task": "masked_lm",
                "objective": {
                    "divergence": {"kind": "forward_kl", "weight": 0.5},
                    "cross_entropy": {"weight": 0.5},
                },
            },
            {
                "name": "finetune",
                "objective": {
                    "divergence": {"kind": "forward_kl", "weight": 0.0},
                    "cross_entropy": {"weight": 1.0},
                },
            },
        ],
    },
    example={},
    notes=(
        "The student is transformers' MobileBERT with the teacher's depth, heads and vocabulary; its blocks read and "
        "write the teacher's width, so that feature maps are compared without a projector. The published teacher, "
        "IB-BERT, has an inverted bottleneck of width 512; any encoder is taken here.",
        "The paper splits the distance of feature maps into that of means and of variances for its ablation and adds "
        "the prediction of the next sentence; both are left out.",
        "Turns of layers are even shares of the stage `transfer`; the paper gives each layer 10,000 of 240,000 steps "
        "and then all of them 500,000 of pre-training.",
    ),
)
