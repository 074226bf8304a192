"""MiniLMv2: relations of queries, keys and values in relation heads, of any layer."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="minilmv2",
    title="Relations of queries, keys and values",
    paper=Paper(
        title="MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
        authors="Wang et al.",
        year=2020,
        arxiv="2012.15828",
    ),
    summary="The student copies how queries, keys and values relate among themselves, then learns a task.",
    formula=(
        "L = sum over X in {Q, K, V} of mean_heads,positions KL(R_p ‖ R_q), R = softmax(X X' / sqrt(d)) in A relation "
        "heads, then L = CE(y, q),   A = 48"
    ),
    fragment={
        "task": {"kind": "sequence_classification"},
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.0},
            "hints": [
                {
                    "kind": kind,
                    "student": [-1],
                    "teacher": [-1],
                    "positions": "all",
                    "parameters": {"relation_heads": 48},
                }
                for kind in ("query_relation", "key_relation", "value_relation")
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
        "48 relation heads are published for base-sized models and 64 for large ones, whose last layer but two teaches "
        "(objective.hints.N.teacher: [21] of 24); both widths must be multiples of the number.",
        "Numbers of attention heads and widths may differ between the models.",
        "The stage `general` reads the recipe's own text, where the paper reads Wikipedia and books.",
    ),
)
