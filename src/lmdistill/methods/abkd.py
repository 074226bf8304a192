"""ABKD: the alpha-beta divergence, a family that holds forward and reverse KL as its corners."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="abkd",
    title="Alpha-beta divergence",
    paper=Paper(
        title=(
            "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via α-β-Divergence"
        ),
        authors="Wang et al.",
        year=2025,
        arxiv="2505.04560",
    ),
    summary="Two exponents set how strongly large gaps and confident student predictions count.",
    formula=(
        "L = -1/(a b) sum_v [p_v^a q_v^b - a/(a+b) p_v^(a+b) - b/(a+b) q_v^(a+b)],   a = alpha = 0.2, b = beta = 0.7"
    ),
    fragment={
        "objective": {
            "divergence": {"kind": "alpha_beta", "weight": 1.0, "parameters": {"alpha": 0.2, "beta": 0.7}},
            "cross_entropy": {"weight": 0.0},
        }
    },
    notes=(
        "alpha 1, beta 0 is forward KL; alpha 0, beta 1 is reverse KL; where one of them or their sum is 0 the limit "
        "is taken.",
        "The published GPT-2 script sets alpha 0.2 and the sum 0.9, hence beta 0.7; other pairs of models use other "
        "values, so search around them.",
    ),
    aliases=("alpha_beta",),
)
