"""TED: filters learn what of each layer the task needs, and only that is copied."""

from lmdistill.methods.base import Method, Paper

METHOD = Method(
    name="ted",
    title="Task-aware filters behind each layer",
    paper=Paper(
        title="Less is More: Task-aware Layer-wise Distillation for Language Model Compression",
        authors="Liang et al.",
        year=2022,
        arxiv="2210.01351",
    ),
    summary=(
        "Filters behind the layers of both frozen models learn the task; then the student's filtered states are drawn "
        "to the teacher's, beside labels and predictions."
    ),
    formula="L = CE(y, q) + a1 KL(p ‖ q) + a2 mean_m MSE(f_q^m(h_q^m), f_p^g(m)(h_p^g(m))),   a1 = 20, a2 = 20",
    fragment={
        "task": {"kind": "sequence_classification", "filters": {"weight": 20.0}},
        "student": {"start": "teacher", "depth": {"importance": "uniform"}},
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 20.0, "temperature": 1.0},
            "cross_entropy": {"weight": 1.0},
        },
    },
    example={"student": {"depth": {"keep": 3}}},
    notes=(
        "Published a1 and a2 by task: MNLI 5 and 7500, QQP 20 and 1000, QNLI 20 and 100, SST-2 20 and 20, RTE 20 and "
        "50, CoLA 0 and 10, MRPC 20 and 100, STS-B 20 and 50; those of SST-2 stand here.",
        "Filters are linear and as wide as the teacher (768 as published). Each has a pooler and a classifier of "
        "its own "
        "while it learns the task, which are thrown away; the teacher's are frozen afterwards, the student's go on.",
        "The filters' own stages are called filters-teacher and filters-student; task.filters.training gives them "
        "other steps than the student's.",
    ),
)
