"""XtremeDistil: representations, then logits, then labels; layers thaw from the top."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="xtremedistil",
    title="Stage by stage with gradual unfreezing",
    paper=Paper(
        title="XtremeDistil: Multi-stage Distillation for Massive Multilingual Models",
        authors="Mukherjee and Awadallah",
        year=2020,
        arxiv="2004.05686",
    ),
    summary=(
        "The student learns the teacher's last states, then its logits, then the labels, and in each of the later "
        "stages "
        "its layers thaw one after another from the top."
    ),
    formula=(
        "L = (1 / K) ||W h_q + b - h_p||² on unlabelled rows, then L = mean over classes of (z_p - z_q)², then "
        "L = CE(y, q)"
    ),
    fragment={
        "task": {"kind": "sequence_classification", "logits": {"kind": "logits_mse", "over_classes": True}},
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.0},
            "hints": [
                {
                    "kind": "hidden_mse",
                    "student": [-1],
                    "teacher": [-1],
                    "positions": "all",
                    "projector": {"kind": "mlp"},
                }
            ],
        },
        "stages": [
            {"name": "representations"},
            {
                "name": "logits",
                "objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}},
                "unfreeze": {"order": "top_down", "mode": "accumulate", "until": 0.5},
            },
            {
                "name": "labels",
                "objective": {
                    "divergence": {"kind": "forward_kl", "weight": 0.0},
                    "cross_entropy": {"weight": 1.0},
                },
                "unfreeze": {"order": "top_down", "mode": "accumulate", "until": 0.5},
            },
        ],
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "The published student is a bidirectional LSTM for multilingual names of entities, with word embeddings from a "
        "singular value decomposition of the teacher's; here it is a transformer, since its layers are what thaws. For "
        "token_classification set task.kind.",
        "The projector of the first stage is an MLP with GELU, as the paper's is; it is thrown away behind it.",
        "Which teacher layer is best is searched in the paper; the last one stands here (objective.hints.0.teacher).",
    ),
)
