"""HomoDistil: the student begins as its teacher and loses neurons, heads and width while it learns."""

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
        "The student begins as a copy of the teacher and loses its least important neurons, heads and channels bit by "
        "bit, so that it never falls far behind."
    ),
    formula=(
        "L = CE(masked tokens, q) + a1 KL(p ‖ q) + a2 mean_m MSE(h_q^m W_m, h_p^m) + a3 mean_m MSE(A_q^m, A_p^m),   "
        "a1 = a2 = a3 = 1, then L = CE(y, q)"
    ),
    fragment={
        "task": {"kind": "sequence_classification"},
        "student": {"start": "teacher"},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0},
            "cross_entropy": {"weight": 1.0},
            "hints": [
                {"kind": "hidden_mse", "positions": "all", "projector": {"kind": "linear"}},
                {"kind": "attention_scores_mse", "positions": "all"},
            ],
        },
        "stages": [
            {
                "name": "prune",
                "task": "masked_lm",
                "pruning": {"intermediate": 768, "heads": 6, "hidden": 192, "end": 0.7, "every": 10},
            },
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
        "Neurons and heads of each layer and channels of the whole network go, by the moving average of |w dL/dw| "
        "summed over a unit's weights, on a cubic curve until 0.7 of the steps. The paper prunes the columns of each "
        "matrix by themselves; here what belongs together goes as one, so that what is left is an ordinary model: a "
        "head with its queries, keys, values and output, a channel with everything that reads or writes it.",
        "Set stages.0.pruning to what is to be left. A BERT's heads fill its hidden width, so both go together: hidden "
        "is heads times the size of a head. Without both, neurons alone go.",
        "The projector of hidden states begins as the identity and learns to make up for channels that went.",
        "The weights of the terms are ours: the paper's were not found.",
    ),
)
