"""Minitron with hidden-state terms: pruned by activation importance, brought back by logits and states."""

from lmdistill.methods.base import Method
from lmdistill.methods.minitron import METHOD as MINITRON

METHOD = Method(
    name="minitron_hidden",
    title="Prune, then distil logits and states",
    paper=MINITRON.paper,
    summary="The pruned student learns the teacher's distribution and, through a learnt matrix, its hidden states.",
    formula=(
        "L = KL(p ‖ q) + alpha / n sum over n layer pairs ||W h_q - h_p||² / H,   alpha = KL / (the sum), at each step"
    ),
    fragment={
        **MINITRON.fragment,
        "objective": {
            **MINITRON.fragment["objective"],
            "hints": [
                {
                    "kind": "hidden_mse",
                    "map": "uniform",
                    "weight": 1.0,
                    "weight_schedule": "loss_magnitude",
                    "projector": {"kind": "linear"},
                }
            ],
        },
    },
    example={"student": {"width": {"intermediate": 768}, "depth": {"keep": 16}}},
    notes=(
        "The authors add these terms where depth shrinks much (section 2.3) and find logits alone enough for width; "
        "alpha, the ratio of both losses, is found anew at each step, as published.",
        "All of the student's layers are compared with evenly spaced ones of the teacher; to compare few, which costs "
        "less, name them: objective.hints.0.student. States are taken behind blocks, before the next norm.",
        "W is the identity at first where the student keeps the width, and no part of the student.",
    ),
)
