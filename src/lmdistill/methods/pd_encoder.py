"""Pre-trained distillation for encoders: masked tokens first, then the teacher of the task, then labels."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="pd_encoder",
    title="Pre-train, distil, fine-tune an encoder",
    paper=Paper(
        title="Well-Read Students Learn Better: On the Importance of Pre-training Compact Models",
        authors="Turc et al.",
        year=2019,
        arxiv="1908.08962",
    ),
    summary="A small encoder learns masked tokens, then the teacher's predictions of the task, then the labels.",
    formula="L = CE(masked tokens, q), then L = -sum p log q, then L = CE(y, q)",
    fragment={
        "task": {"kind": "sequence_classification", "logits": {"kind": "soft_cross_entropy", "over_classes": False}},
        "student": {"start": "config"},
        "objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}},
        "stages": [
            {
                "name": "pretrain",
                "task": "masked_lm",
                "objective": {
                    "divergence": {"kind": "forward_kl", "weight": 0.0},
                    "cross_entropy": {"weight": 1.0},
                },
            },
            {"name": "distil"},
            {
                "name": "finetune",
                "objective": {
                    "divergence": {"kind": "forward_kl", "weight": 0.0},
                    "cross_entropy": {"weight": 1.0},
                },
            },
        ],
    },
    example={
        "student": {
            "config": {
                "num_hidden_layers": 2,
                "hidden_size": 192,
                "intermediate_size": 768,
                "num_attention_heads": 6,
            }
        }
    },
    notes=(
        "The stage `distil` is for unlabelled rows of the task's kind: name them under stages.1.train (labels in them "
        "are not looked at). The published set is larger than the labelled one.",
        "The last stage is optional in the paper and helps where labels are many.",
        "For decoders: pretrained_distillation.",
    ),
)
