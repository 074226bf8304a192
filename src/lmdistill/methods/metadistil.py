"""MetaDistil: the teacher learns to teach from what its student does in a quiz."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="metadistil",
    title="A teacher that learns to teach",
    paper=Paper(
        title="BERT Learns to Teach: Knowledge Distillation with Meta Learning",
        authors="Zhou et al.",
        year=2021,
        arxiv="2106.04570",
    ),
    summary="Before each step of the student its teacher is moved so that this step would help in a quiz.",
    formula=(
        "L = (1 - a) CE(y, q) + a tau² mean over classes of (p_tau - q_tau)²; teacher: CE(quiz, q after the step L "
        "would "
        "take),   a = 0.5, tau = 5"
    ),
    fragment={
        "task": {
            "kind": "sequence_classification",
            "logits": {"kind": "softmax_mse", "over_classes": True},
            "bilevel": {"teacher_learning_rate": 1e-5},
        },
        "student": {"start": "teacher", "depth": {"importance": "first"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.5, "temperature": 5.0, "temperature_squared": True},
            "cross_entropy": {"weight": 0.5},
        },
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "The paper writes KL, the released code takes the mean squared difference of the probabilities times tau²; "
        "task.logits.kind: divergence is the paper's.",
        "The published objective also holds PKD's term with b = 100. A hint can be added (objective.hints) and then "
        "counts in the student's real step, not in the step that is tried.",
        "Both models are run without fused attention and in float32 for the teacher's step, which takes about three "
        "times a step's time.",
    ),
)
