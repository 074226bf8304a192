"""Minitron: prune by activation importance, then recover by distillation from the unpruned model."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="minitron",
    title="Prune by activations, then distil",
    paper=Paper(
        title="Compact Language Models via Pruning and Knowledge Distillation",
        authors="Muralidharan et al.",
        year=2024,
        arxiv="2407.14679",
    ),
    summary="Neurons, heads, channels and layers that matter least are cut; forward KL alone brings the rest back.",
    formula="L = KL(p ‖ q) on the student pruned from p",
    fragment={
        "student": {"start": "teacher"},
        "objective": {"divergence": {"kind": "forward_kl", "weight": 1.0}, "cross_entropy": {"weight": 0.0}},
    },
    example={"student": {"width": {"intermediate": 768, "heads": 6}, "depth": {"keep": 24}}},
    notes=(
        "Say how much to keep: student.width (intermediate, heads, hidden) and student.depth (keep).",
        "The authors prefer width to depth at their sizes (up to 15B parameters) and drop cross-entropy; when depth "
        "shrinks much they add losses on hidden states: the method minitron_hidden.",
        "They rank on 1,024 calibration samples and start from the trained teacher; student.calibration_tokens is "
        "smaller here so that a laptop can do it.",
    ),
)
