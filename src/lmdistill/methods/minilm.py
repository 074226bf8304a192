"""MiniLM: the last layer's attention and value relations, of any depth and width."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="minilm",
    title="Relations of the last layer's attention",
    paper=Paper(
        title="MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
        authors="Wang et al.",
        year=2020,
        arxiv="2002.10957",
    ),
    summary=(
        "The student copies the attention of the teacher's last layer and how its values relate, then learns a task."
    ),
    formula=(
        "L = mean_heads,positions KL(A_p ‖ A_q) + mean_heads,positions KL(VR_p ‖ VR_q), VR = softmax(V V' / sqrt(d)), "
        "then L = CE(y, q)"
    ),
    fragment={
        "task": {"kind": "sequence_classification"},
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.0},
            "hints": [
                {"kind": "attention_kl", "student": [-1], "teacher": [-1], "positions": "all"},
                {"kind": "value_relation", "student": [-1], "teacher": [-1], "positions": "all"},
            ],
        },
        "stages": [
            {"name": "general", "task": "masked_lm"},
            {
                "name": "finetune",
                "objective": {
                    "divergence": {"kind": "forward_kl", "weight": 0.0},
                    "cross_entropy": {"weight": 1.0},
                },
            },
        ],
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "Both models need as many heads; MiniLMv2 does not. Widths may differ.",
        "The published student starts afresh (student: {start: config, config: {...}}) and reads Wikipedia and books; "
        "the stage `general` reads the recipe's own text. Where the student is much smaller, a teacher assistant is a "
        "run before this one, with its student as this one's teacher.",
        "The teacher of the stage `general` is the encoder as it was before it learnt the task, and its head for "
        "masked "
        "tokens is not looked at.",
    ),
)
