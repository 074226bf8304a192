"""MiniPLM: pre-train on the documents that the teacher knows and a small model does not."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="miniplm",
    title="Difference sampling",
    paper=Paper(
        title="MiniPLM: Knowledge Distillation for Pre-Training Language Models",
        authors="Gu et al.",
        year=2024,
        arxiv="2410.17215",
    ),
    summary="The teacher chooses the text: documents that it finds much likelier than a small reference model stay.",
    formula="L = -log q(x) over the half of the documents x with the largest (log p(x) - log p_ref(x)) / |x|",
    fragment={
        "objective": {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}},
    },
    example={
        "student": {"depth": {"keep": 16}},
        "data": {"difference": {"reference": {"model": "runs/demo/student"}, "keep": 0.5}},
    },
    notes=(
        "Name a small model of the teacher's family in data.difference.reference; the example names the student that "
        "`make demo` leaves. The student itself may be of any family: it only ever sees text.",
        "The authors' formula is a difference of log-likelihoods; their README prints a ratio, their code the "
        "difference. Here it is divided by the number of tokens, so that long documents have no advantage.",
        "Choosing costs one pass of both models over all documents, once.",
    ),
)
