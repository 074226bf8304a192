"""TinyBERT: attention, hidden states and embeddings first, then predictions, on more rows than there are."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="tinybert",
    title="Attention and states, then predictions",
    paper=Paper(
        title="TinyBERT: Distilling BERT for Natural Language Understanding",
        authors="Jiao et al.",
        year=2019,
        arxiv="1909.10351",
    ),
    summary=(
        "Layer by layer the student copies attention scores and hidden states, first on text alone, then on augmented "
        "rows of the task, and at last it learns the teacher's predictions."
    ),
    formula=(
        "L = sum_m MSE(A_q^m, A_p^g(m)) + sum_m MSE(h_q^m W_h, h_p^g(m)) + MSE(e_q W_e, e_p), then "
        "L = mean over classes of -p log q,   g(m) = m N / M"
    ),
    fragment={
        "task": {
            "kind": "sequence_classification",
            "logits": {"kind": "soft_cross_entropy", "over_classes": True},
            "augment": {"probability": 0.4, "copies": 20, "candidates": 15},
        },
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 0.0},
            "cross_entropy": {"weight": 0.0},
            "hints": [
                {"kind": "attention_scores_mse", "over_layers": "sum", "positions": "all"},
                {
                    "kind": "hidden_mse",
                    "over_layers": "sum",
                    "positions": "all",
                    "projector": {"kind": "linear", "shared": True},
                },
                {"kind": "embedding_mse", "positions": "all", "projector": {"kind": "linear"}},
            ],
        },
        "stages": [
            {"name": "general", "task": "masked_lm"},
            {"name": "inside"},
            {
                "name": "outside",
                "objective": {
                    "divergence": {"kind": "forward_kl", "weight": 1.0, "temperature": 1.0},
                    "cross_entropy": {"weight": 0.0},
                },
            },
        ],
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "The released code takes the mean of the soft cross-entropy over rows and classes, so its scale is 1 / C "
        "of the "
        "textbook's (task.logits.over_classes: false). Scores at or below -100 count as 0 in both models and all keys "
        "count in the mean, as there.",
        "The paper has one matrix for states and one for embeddings; the code shares one for both. Here the states' "
        "is shared over layers, that of the embeddings is its own.",
        "The published student has 4 layers of width 312 (student.start: config) and is distilled on Wikipedia first; "
        "the stage `general` does that on the recipe's own text. Published: 3e-5 and 3 epochs in the last stage, 10 to "
        "50 epochs inside, N = 30 copies of small sets and 10 of large ones, K = 15 candidates.",
        "No GloVe ships with anything here: candidates are the nearest word pieces by the teacher's input embeddings, "
        "and with task.augment.words: masked_lm what a masked language model would say.",
    ),
)
