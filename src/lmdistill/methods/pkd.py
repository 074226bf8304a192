"""PKD: the states of [CLS] in intermediate layers, beside softened predictions."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="pkd",
    title="[CLS] states in intermediate layers",
    paper=Paper(
        title="Patient Knowledge Distillation for BERT Model Compression",
        authors="Sun et al.",
        year=2019,
        arxiv="1908.09355",
    ),
    summary="Labels, softened teacher probabilities, and the directions of the first position's states layer by layer.",
    formula=(
        "L = (1 - a) CE(y, q) + a tau² KL(p_tau ‖ q_tau) + b mean_layers (1 / H) ||h_q / ||h_q|| - h_p / ||h_p|| "
        "||²,   "
        "a = 0.5, tau = 5, b = 100"
    ),
    fragment={
        "task": {"kind": "sequence_classification"},
        "student": {"start": "teacher", "depth": {"importance": "first"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.5, "temperature": 5.0, "temperature_squared": True},
            "cross_entropy": {"weight": 0.5},
            "hints": [{"kind": "hidden_normalised_mse", "map": "skip", "positions": "first", "weight": 100.0}],
        },
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "PKD-Skip; PKD-Last is objective.hints.0.map: last. The student starts from the teacher's first layers before "
        "fine-tuning (task.student_from: pretrained), as published.",
        "The published grid is a in {0.2, 0.5, 0.7}, tau in {5, 10, 20}, b in {10, 100, 500, 1000}: one choice of it "
        "stands here.",
        "The paper sums the squared difference over the width, the released code takes its mean, and b belongs to the "
        "code; objective.hints.0.parameters.reduction: sum is the paper's. The code also rounds this term to half "
        "precision, which is left out.",
    ),
)
