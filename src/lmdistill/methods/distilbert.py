"""DistilBERT: a triple loss on a student made of every other layer of the teacher."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="distilbert",
    title="Triple loss from every other layer",
    paper=Paper(
        title="DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
        authors="Sanh et al.",
        year=2019,
        arxiv="1910.01108",
    ),
    summary="Softened teacher probabilities, cross-entropy on the text, and the direction of the last hidden state.",
    formula="L = 5 tau² KL(p_tau ‖ q_tau) + 2 CE(y, q) + 1 (1 - cos(h_p, h_q)),   tau = 2",
    fragment={
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 5.0, "temperature": 2.0, "temperature_squared": True},
            "cross_entropy": {"weight": 2.0},
            "hidden_cosine": {"weight": 1.0},
        },
    },
    example={"student": {"depth": {"keep": 15}}},
    notes=(
        "Set student.depth.keep to half of the teacher's layers; they are taken evenly spaced, with the first and the "
        "last among them, as in the released code (0, 2, 4, 7, 9 and 11 of 12). To name them "
        "yourself, write student.layers and student.depth: null.",
        "Published for BERT with masked-token cross-entropy; a causal model has the ordinary one in its place. The "
        "weights 5, 2 and 1 are those of the released training command.",
        "The hidden states are compared as they are, so the student must keep the teacher's width.",
    ),
)
