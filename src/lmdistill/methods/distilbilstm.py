"""DistilBiLSTM: a bidirectional LSTM learns the logits of a fine-tuned encoder."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="distilbilstm",
    title="A bidirectional LSTM learns logits",
    paper=Paper(
        title="Distilling Task-Specific Knowledge from BERT into Simple Neural Networks",
        authors="Tang et al.",
        year=2019,
        arxiv="1903.12136",
    ),
    summary="A single-layer bidirectional LSTM learns the teacher's logits by their squared distance.",
    formula="L = a CE(y, q) + (1 - a) ||z_p - z_q||²,   a = 0",
    fragment={
        "task": {
            "kind": "sequence_classification",
            "bilstm": {"hidden": 150, "projection": 200},
            "logits": {"kind": "logits_mse", "over_classes": False},
        },
        "objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
    },
    example={},
    notes=(
        "a = 0 is what the paper uses throughout: labels did not help beside logits.",
        "The paper starts from word2vec, which ships with nothing here: the teacher's word-piece embeddings stand in "
        "its place (task.bilstm.embedding names a width to start afresh). A pair of texts is read as one, with the "
        "separator between them, where the paper compares two encodings.",
        "The paper's rules for more data (masking, words of the same part of speech, n-grams) are not here; "
        "task.augment is TinyBERT's. task.logits.over_classes: true takes the mean over classes, as MSELoss does.",
    ),
)
