"""Options of the makers of instructions and their answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lmdistill.recipe.base import Count, NonNegative, Section, Share

Evolution = Literal["constraint", "deepen", "concretize", "reasoning", "complicate", "breadth"]
"""A rewriting of an instruction."""


class InstructionsSpec(Section):
    """New instructions, written after the example of the seeds (`self_instruct`, `alpaca`, `topics`)."""

    wanted: Count = 100
    """New instructions to keep; making ends there, or after `requests` questions to the teacher."""
    requests: Count = 100
    """Most requests for new instructions; each further step of a method (classification, input, answer) is extra."""
    wave: Count = 8
    """Requests that are asked together; what they bring joins the pool before the next wave."""
    human_examples: Count = 6
    """Instructions of the seeds in a request."""
    model_examples: Annotated[int, Field(ge=0)] = 2
    """Instructions that the teacher wrote before in a request, once there are some."""
    per_request: Count = 3
    """New instructions that one request asks for."""
    novelty: Share = 0.7
    """An instruction is kept where its ROUGE-L to every other is below this."""
    words: tuple[Count, Count] = (3, 150)
    """Fewest and most words of an instruction."""
    forbidden: list[str] = Field(
        default_factory=lambda: ["image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map"]
    )
    """Words of instructions that a model without eyes and hands cannot follow."""
    topics: list[str] = Field(default_factory=list)
    """Topics that requests name (`topics`); LaMini took them from Wikipedia's categories."""
    topics_per_request: Count = 3
    """Topics in a request."""


class EvolveSpec(Section):
    """Evol-Instruct (arXiv 2304.12244): instructions are rewritten, made harder in depth or changed in breadth."""

    generations: Count = 2
    """Times that each instruction is rewritten, each time from what the last one left."""
    operations: list[Evolution] = Field(
        default=["constraint", "deepen", "concretize", "reasoning", "complicate", "breadth"]
    )
    """Rewritings, one of which is drawn for each instruction and generation."""
    short_refusal_words: Count = 80
    """An answer that says sorry in fewer words than this is taken for one that fails the instruction."""


class AdversarialSpec(Section):
    """Lion (arXiv 2305.12870): imitation, discrimination, generation; one round each of `generation.rounds`."""

    margin: NonNegative = 1.0
    """An instruction is hard where the referee scores the teacher's answer by so much above the student's, as a mean of
    both orders; scores go from 1 to 10."""
    new_per_kind: Count = 20
    """New hard and as many new easy instructions a round."""
    novelty: Share = 0.7
    """A new instruction is kept where its ROUGE-L to every other is at most this."""
    judged: Count = 100
    """Most instructions of the pool that are judged in a round."""


class EntitiesSpec(Section):
    """UniversalNER (arXiv 2308.03279): the passages are what varies, not the instruction."""

    negatives: Annotated[int, Field(ge=0)] = 2
    """Types that a passage does not hold, asked beside each passage's own; drawn by how often they occur elsewhere."""
    most_types: Count = 8
    """Most types of a passage that become rows."""


class RefineSpec(Section):
    """Personalised distillation (arXiv 2310.18628): the teacher mends what the student got wrong."""

    rows: Literal["refined", "refine", "combined"] = "combined"
    """`refined`: question to mended answer (PERsD); `refine`: question with the failed attempt to mended answer
    (PERsD-refine); `combined`: both (PERsD-combined)."""


class ReflectSpec(Section):
    """Selective Reflection-Tuning (arXiv 2402.10110): the teacher improves instruction and answer, the student's own
    difficulties decide what is kept."""

    improve: list[Literal["instruction", "response"]] = Field(default=["instruction", "response"])
    """What the teacher reflects on, in this order."""
