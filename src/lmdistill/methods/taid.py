"""TAID: the target moves from the student towards the teacher while training goes on."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="taid",
    title="Target that moves from student to teacher",
    paper=Paper(
        title=(
            "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models"
        ),
        authors="Shing et al.",
        year=2025,
        arxiv="2501.16937",
    ),
    summary="Forward KL to a mixture of the student's own and the teacher's logits, whose share of teacher grows.",
    formula="L = KL(softmax((1 - t) z_q + t z_p) ‖ q),   z_q held fixed, t from 0.4 to 1",
    fragment={
        "objective": {
            "divergence": {
                "kind": "taid",
                "weight": 1.0,
                "parameters": {"start": 0.4, "end": 1.0, "alpha": 5e-4, "momentum": 0.99},
            },
            "cross_entropy": {"weight": 0.0},
        }
    },
    notes=(
        "t grows by alpha · sigmoid(momentum of the relative fall of the loss) · (1 - t) at each step and never lags "
        "behind the straight line from start to end, so it reaches end at the last step.",
        "The publication starts at 0.4, and at 0.2 for some pairs of models.",
        "The target contains the student, so the training loss is not a distance to the teacher: read the KL on "
        "held-out text instead.",
    ),
)
