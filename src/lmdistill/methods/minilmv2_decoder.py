"""MiniLMv2 for decoders: which positions are alike, in queries, keys and values of one layer."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="minilmv2_decoder",
    title="Attention relations, causal (MiniLMv2)",
    paper=Paper(
        title="MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
        authors="Wang et al.",
        year=2020,
        arxiv="2012.15828",
    ),
    summary="Relations between positions in queries, keys and values, which no width or number of heads binds.",
    formula=(
        "L = KL(p ‖ q) + sum over X in {Q, K, V} KL(R_p ‖ R_q),   R = softmax(X X^T / sqrt(d)) over what came before"
    ),
    fragment={
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0},
            "cross_entropy": {"weight": 0.0},
            "hints": [
                {"kind": kind, "student": [-1], "teacher": [-1], "weight": 1.0, "parameters": {"causal": True}}
                for kind in ("query_relation", "key_relation", "value_relation")
            ],
        }
    },
    example={
        "student": {"width": {"heads": 6}, "depth": {"keep": 16, "importance": "uniform"}},
        "objective": {
            "hints": [
                {
                    "kind": kind,
                    "student": [-1],
                    "teacher": [-1],
                    "weight": 1.0,
                    "parameters": {"causal": True, "relation_heads": 9},
                }
                for kind in ("query_relation", "key_relation", "value_relation")
            ]
        },
    },
    notes=(
        "Published for encoders, where relations go to all positions and are the whole loss; a decoder's go to what "
        "came before, and a divergence stands beside them, since relations alone teach nothing behind the compared "
        "layer.",
        "The published number of relation heads is 48 for base-sized models: parameters.relation_heads, the teacher's "
        "heads where absent; it must divide both models' widths of all heads together.",
        "The publication takes an upper-middle layer of large teachers (21 of 24) rather than the last: "
        "hints.N.teacher.",
        "Queries and keys are taken before rotary embedding; with grouped-query attention, keys and values stand "
        "once for each query head.",
    ),
)
