"""The makers of data by name."""

from __future__ import annotations

from lmdistill.generation.adversarial import make_adversarial
from lmdistill.generation.answers import make_answers
from lmdistill.generation.chains import make_chains
from lmdistill.generation.contrastive import make_contrastive
from lmdistill.generation.desk import Maker
from lmdistill.generation.entities import make_entities
from lmdistill.generation.evolve import make_evolved
from lmdistill.generation.in_context import make_context, make_in_context
from lmdistill.generation.multi_task import make_multi_task
from lmdistill.generation.one_pass import make_alpaca, make_topics
from lmdistill.generation.program_rows import make_programs
from lmdistill.generation.rationale_pairs import make_rationale_pairs
from lmdistill.generation.rationales import make_rationales
from lmdistill.generation.refine import make_refined
from lmdistill.generation.reflect import make_reflected
from lmdistill.generation.retrieved import make_retrieved
from lmdistill.generation.self_instruct import make_self_instruct
from lmdistill.generation.socratic import make_socratic
from lmdistill.generation.triples import make_triples

MAKERS: dict[str, Maker] = {
    "answers": make_answers,
    "rationales": make_rationales,
    "multi_task": make_multi_task,
    "socratic": make_socratic,
    "programs": make_programs,
    "rationale_pairs": make_rationale_pairs,
    "contrastive": make_contrastive,
    "retrieved": make_retrieved,
    "triples": make_triples,
    "context": make_context,
    "in_context": make_in_context,
    "chains": make_chains,
    "self_instruct": make_self_instruct,
    "alpaca": make_alpaca,
    "topics": make_topics,
    "evolve": make_evolved,
    "adversarial": make_adversarial,
    "entities": make_entities,
    "refine": make_refined,
    "reflect": make_reflected,
}
"""By the name in `generation.maker`."""

ASKS_THE_STUDENT: frozenset[str] = frozenset({"adversarial", "refine", "reflect"})
"""Makers that look at what the student can do, so that a round needs the student of the round before."""
