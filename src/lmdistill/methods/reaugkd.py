"""ReAugKD: at test time the teacher's predictions on similar training rows are asked."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="reaugkd",
    title="Retrieval of the teacher's predictions",
    paper=Paper(
        title="ReAugKD: Retrieval-Augmented Knowledge Distillation For Pre-trained Language Models",
        authors="Zhang et al.",
        year=2023,
        url="https://aclanthology.org/2023.acl-short.97",
    ),
    summary=(
        "The student learns to be near the rows that its teacher is near to, and at test time mixes in what the "
        "teacher "
        "predicted for these."
    ),
    formula=(
        "L = -mean_i mean_{p: y_p = y_i} log softmax_{j != i}(z_i z_j / tau)[p] for W in z = W t, then "
        "L = CE(y, q) + KL(p ‖ q) + c mean_i KL(softmax_j(s_i z_j / tau) ‖ softmax_j(z_i z_j / tau)); at test time "
        "(1 - w) q + w sum_k softmax_k(s z_k) p_k,   tau = 0.1, w = 0.5, k = 10"
    ),
    fragment={
        "task": {"kind": "sequence_classification", "retrieval": {"neighbours": 10, "relation_temperature": 0.1}},
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0},
            "cross_entropy": {"weight": 1.0},
        },
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "The teacher's projection W learns in a stage of its own, retrieval-teacher, with the teacher frozen, by a "
        "contrast of the labels (2004.11362), and is frozen afterwards; task.retrieval.training gives that stage other "
        "steps than the student's.",
        "What the report says of the student includes retrieval; the folder that is shipped is the student alone, the "
        "projection lies beside it (retrieval-projection.safetensors) and the memory is made anew from the "
        "training rows.",
        "The direction of the relation term is as remembered from the paper, which was not at hand: "
        "task.retrieval.relation_direction: teacher_student turns it round.",
        "k, tau and w are ours: the paper tunes them by task.",
    ),
)
