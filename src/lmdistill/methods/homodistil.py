"""HomoDistil: the student begins as its teacher and loses neurons while it learns."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="homodistil",
    title="Prune while distilling",
    paper=Paper(
        title="HomoDistil: Homotopic Task-Agnostic Distillation of Pre-trained Transformers",
        authors="Liang et al.",
        year=2023,
        arxiv="2302.09632",
    ),
    summary=(
        "The student begins as a copy of the teacher and loses its least important neurons bit by bit, so that it "
        "never "
        "falls far behind."
    ),
    formula=(
        "L = CE(masked tokens, q) + a1 KL(p ‖ q) + a2 mean_m MSE(h_q^m, h_p^m) + a3 mean_m MSE(A_q^m, A_p^m),   "
        "a1 = a2 = a3 = 1, then L = CE(y, q)"
    ),
    fragment={
        "task": {"kind": "sequence_classification"},
        "student": {"start": "teacher"},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0},
            "cross_entropy": {"weight": 1.0},
            "hints": [
                {"kind": "hidden_mse", "positions": "all"},
                {"kind": "attention_scores_mse", "positions": "all"},
            ],
        },
        "stages": [
            {"name": "prune", "task": "masked_lm", "pruning": {"intermediate": 384, "end": 0.7, "every": 10}},
            {
                "name": "finetune",
                "objective": {
                    "divergence": {"kind": "forward_kl", "weight": 0.0},
                    "cross_entropy": {"weight": 1.0},
                },
            },
        ],
    },
    example={},
    notes=(
        "Neurons of the MLPs go, by the moving average of |w dL/dw| summed over a neuron's weights, on a cubic curve "
        "until 0.7 of the steps; the paper prunes the columns of all matrices, the hidden width among them, which here "
        "stays the teacher's.",
        "Set stages.0.pruning.intermediate to the neurons of each layer that are to be left.",
        "The weights of the terms are ours: the paper's were not found.",
    ),
)
