"""DistilBERT on masked tokens, as it was published, for encoders."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="distilbert_mlm",
    title="Triple loss on masked tokens",
    paper=Paper(
        title="DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
        authors="Sanh et al.",
        year=2019,
        arxiv="1910.01108",
    ),
    summary=(
        "Softened teacher probabilities of masked tokens, these tokens, and the direction of the last hidden state."
    ),
    formula="L = 5 tau² KL(p_tau ‖ q_tau) + 2 CE(masked tokens, q) + 1 (1 - cos(h_p, h_q)),   tau = 2",
    fragment={
        "task": {"kind": "masked_lm"},
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 5.0, "temperature": 2.0, "temperature_squared": True},
            "cross_entropy": {"weight": 2.0},
            "hints": [{"kind": "hidden_cosine", "student": [-1], "teacher": [-1], "positions": "all", "weight": 1.0}],
        },
    },
    example={"student": {"depth": {"keep": 3}}, "task": {"text": "context"}},
    notes=(
        "The student is an encoder without a task: fine-tune it in a second stage, or in a recipe of its own "
        "(student: {start: pretrained, model: {model: runs/NAME/student}}).",
        "A teacher whose files have no head for masked tokens learns one first, on the same text (task.teacher); with "
        "the published teacher, BERT, set task.teacher.fine_tune: false.",
        "The hidden states are compared as they are, so the student must keep the teacher's width.",
    ),
)
