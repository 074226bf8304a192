"""TED for decoders: filters learn what of each layer the next token needs, and only that is copied."""

from lmdistill.methods.base import Method
from lmdistill.methods.ted import METHOD as TED

METHOD = Method(
    name="ted_decoder",
    title="Task-aware filters, for decoders",
    paper=TED.paper,
    summary=(
        "Filters behind the layers of both frozen models learn the next token; then the student's filtered states are "
        "drawn to the teacher's, beside the text and the predictions."
    ),
    formula=(
        "L = mean_m CE(y, head(norm(f^m(h^m)))) for the filters of either model, then "
        "L = CE(y, q) + a1 KL(p ‖ q) + a2 mean_m MSE(f_q^m(h_q^m), f_p^g(m)(h_p^g(m))),   a1 = a2 = 1"
    ),
    fragment={
        "objective": {
            "divergence": {"kind": "forward_kl", "weight": 1.0},
            "cross_entropy": {"weight": 1.0},
            "hints": [{"kind": "hidden_mse", "map": "uniform", "weight": 1.0, "positions": "all", "filters": {}}],
        }
    },
    example={"student": {"width": {"intermediate": 768}, "depth": {"keep": 16}}},
    notes=(
        "Filters are linear and as wide as the teacher, the identity at first where a model has that width. The paper "
        "gives each a head of its own while it learns; for a vocabulary that would be a table a layer, so here all "
        "learn by the teacher's final norm and head, which are frozen, the student's filters too.",
        "Their stages are called filters-teacher-STAGE and filters-student-STAGE, read the stage's own text and take "
        "as many steps; objective.hints.0.filters.training gives them others. Each step costs a forward pass of one "
        "model and the head once a filter, forward and back.",
        "The student's filters go on with the student, the teacher's are frozen; neither is part of the student "
        "(projectors-STAGE.safetensors).",
        "a1 and a2 are ours: the paper chooses them by task (a2 from 10 to 7500), and sizes of states differ between "
        "models. hints.0.weight_schedule: loss_magnitude makes the term as large as the rest.",
    ),
)
