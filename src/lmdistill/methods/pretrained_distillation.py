"""Pre-trained distillation: pre-train the small model, distil on unlabelled text, fine-tune."""

from lmdistill.methods.base import Method, Paper

_TEXT = {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}}
_TEACHER = {"divergence": {"kind": "forward_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}}

METHOD = Method(
    name="pretrained_distillation",
    title="Pre-train, distil, fine-tune (PD)",
    paper=Paper(
        title="Well-Read Students Learn Better: On the Importance of Pre-training Compact Models",
        authors="Turc et al.",
        year=2019,
        arxiv="1908.08962",
    ),
    summary="A fresh compact model is pre-trained on text, distilled on transfer text, and at last fine-tuned.",
    formula="L = CE(y, q), then KL(p ‖ q), then CE(y, q)",
    fragment={
        "student": {"start": "config"},
        "stages": [
            {"name": "pretrain", "objective": _TEXT},
            {"name": "distil", "objective": _TEACHER},
            {"name": "finetune", "objective": _TEXT},
        ],
    },
    example={
        "student": {
            "config": {
                "num_hidden_layers": 6,
                "hidden_size": 384,
                "intermediate_size": 1024,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
            }
        }
    },
    notes=(
        "Published for BERT-type classifiers with masked-token pre-training; here the models are causal, so the first "
        "stage is next-token prediction.",
        "Give student.config the compact shape (num_hidden_layers, hidden_size, ...), otherwise the student has the "
        "teacher's. A student that is pre-trained already needs start: pretrained and only the last two stages.",
        "All stages read data.train unless a stage names its own sources (stages.N.train): the transfer text should be "
        "like the task's, the fine-tuning text the task's own.",
    ),
    aliases=("pd",),
)
