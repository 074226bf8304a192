"""MiniMA: structured pruning to a fixed share of the teacher, then distillation of the logits."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="minima",
    title="Prune to 40 % of the teacher, then distil",
    paper=Paper(
        title="Towards the Law of Capacity Gap in Distilling Language Models",
        authors="Zhang et al.",
        year=2023,
        arxiv="2311.07052",
    ),
    summary="A student of about 40 % of the teacher's size, pruned from it and taught its distributions.",
    formula="L = 0.5 KL(p ‖ q) + 0.5 CE(y, q),   q pruned to 0.4 of the parameters of p",
    fragment={
        "student": {"start": "teacher"},
        "objective": {"divergence": {"kind": "forward_kl", "weight": 0.5}, "cross_entropy": {"weight": 0.5}},
    },
    example={"student": {"width": {"hidden": 384, "heads": 6, "intermediate": 1152}, "depth": {"keep": 20}}},
    notes=(
        "The paper's finding is about the choice of the pair: for a given student there is a best teacher, about two "
        "and a half times its size; a larger one teaches it worse.",
        "Say how much to keep in student.width and student.depth so that about 40 % of the parameters stay. The 3B "
        "student of the 7B teacher kept three quarters of the layers, heads, channels and neurons.",
        "The released code halves both terms and trains with learning rate 3e-4, cosine schedule, 1 % warm-up, weight "
        "decay 0.1, bfloat16.",
    ),
)
