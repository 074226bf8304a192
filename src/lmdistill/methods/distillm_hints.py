"""DistiLLM with hints: skew KL on adaptive text, and the direction of hidden states along the depth."""

from lmdistill.methods.base import Method
from lmdistill.methods.distillm import METHOD as DISTILLM

METHOD = Method(
    name="distillm_hints",
    title="DistiLLM with hidden-state hints",
    paper=DISTILLM.paper,
    summary="DistiLLM's divergence and texts; beside them, layers along the depth point where the teacher's point.",
    formula=(
        "L = KL(p ‖ alpha p + (1 - alpha) q) + 1/n sum over n layer pairs (1 - cos(W h_q, h_p)),   alpha = 0.1, "
        "texts as in distillm"
    ),
    fragment={
        **DISTILLM.fragment,
        "objective": {
            **DISTILLM.fragment["objective"],
            "hints": [{"kind": "hidden_cosine", "map": "uniform", "weight": 1.0, "projector": {"kind": "linear"}}],
        },
    },
    example=DISTILLM.example,
    notes=(
        "The publication has no hints: this is its objective with DistilBERT's term (1910.01108) at each of the "
        "student's layers. What the hint is, where and how heavy is open: objective.hints.0.kind, student, weight.",
        "Hints are taken on the student's own text as on the data set's: the teacher reads whatever the student "
        "trains on.",
        "W is the identity at first where both models have one width, is trained at the student's learning rate and "
        "is no part of the student.",
    ),
)
