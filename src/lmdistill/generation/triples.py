"""Symbolic knowledge: triples of an event, a relation and what follows, judged by a critic.

West et al. (arXiv 2110.07178): a large model, shown examples, completes sentences such as "PersonX buys a bicycle. Now
PersonX wants"; a critic drops what it finds unlikely to be valid; the student (COMET) learns `event relation [GEN]` ->
what follows. Fewer and better triples beat more of them: `critic.json` says what each threshold keeps and how precise
that is on labelled rows that the critic did not learn from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lmdistill.data.load import read_rows
from lmdistill.errors import DataError, RecipeError
from lmdistill.generation.critic import cross_validated, fit_critic, precision_curve, triple_features
from lmdistill.generation.desk import Desk, asked, failed, filled, sampling_of
from lmdistill.generation.types import Drop, Example, Seed
from lmdistill.io import write_json
from lmdistill.recipe import SourceSpec
from lmdistill.teachers.api_types import PROMPT, Answer, Message, Request

REPORT = "critic.json"


@dataclass(frozen=True)
class Triple:
    """One inference."""

    head: str
    relation: str
    tail: str

    def prompt(self) -> str:
        """What the student reads."""
        return f"{self.head} {self.relation} [GEN]"


def make_triples(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """A row of the task `triple` for each inference that the critic finds valid; equal ones once."""
    made: list[tuple[Triple, Example]] = []
    seen: set[Triple] = set()
    for seed, relation, answer in _inferences(desk, seeds):
        if not answer.good or answer.text is None:
            yield failed(seed, answer, desk, "triple")
            continue
        triple = Triple(seed.prompt, relation, tidy(answer.text))
        example = _row(desk, seed, triple, answer)
        if not triple.tail:
            yield Drop(example, by="triple", reason="nothing is inferred")
        elif triple in seen:
            yield Drop(example, by="triple", reason="the same inference was made before")
        else:
            seen.add(triple)
            made.append((triple, example))
    yield from _judged(desk, made)


def tidy(text: str) -> str:
    """The inference alone: the first line of an answer, as far as its first full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].partition(". ")[0].strip(" .\"'") if lines else ""


def _inferences(desk: Desk, seeds: Sequence[Seed]) -> Iterator[tuple[Seed, str, Answer]]:
    """What the teacher says of each event and relation, as a text that it continues."""
    ask, spec = desk.spec.ask, desk.spec.triples
    sampling = replace(sampling_of(ask, desk.seed), stop=("\n", *ask.stop))
    shown = "".join(f"{sentence} {tail}.\n" for sentence, tail in ask.demonstrations)
    pairs: list[tuple[Seed, Request]] = []
    relations: list[str] = []
    for seed in seeds:
        for relation, template in spec.relations.items():
            turn = Message(PROMPT, shown + filled(template, event=seed.prompt))
            for sample in range(ask.samples):
                pairs.append((seed, Request((turn,), sampling, sample=sample, tag=f"{seed.id} {relation}")))
                relations.append(relation)
    for relation, (seed, _, answer) in zip(relations, asked(desk, pairs), strict=True):
        yield seed, relation, answer


def _row(desk: Desk, seed: Seed, triple: Triple, answer: Answer) -> Example:
    return Example(
        id=f"{seed.id}-{triple.relation}-{answer.request.sample}",
        prompt=triple.prompt(),
        response=f" {triple.tail}",
        task="triple",
        seed=seed.id,
        fields={"head": triple.head, "relation": triple.relation, "tail": triple.tail},
        provenance=desk.came_from(answer),
    )


def _judged(desk: Desk, made: Sequence[tuple[Triple, Example]]) -> Iterator[Example | Drop]:
    """The triples with the critic's word on them, where there is a critic."""
    spec = desk.spec.triples
    if spec.labelled is None or not made:
        yield from (example for _, example in made)
        return
    from lmdistill.generation.retrieval.dual_encoder import DualEncoder

    encoder = DualEncoder(spec.encoder)
    labelled, valid = read_labelled(desk, spec.labelled)
    features = triple_features(encoder, *sentences(labelled, spec.relations))
    held = cross_validated(features, valid, [triple.head for triple in labelled], spec.folds, desk.seed)
    curve = precision_curve(held, valid)
    if desk.folder is not None:
        write_json(desk.folder / REPORT, {"labelled": len(valid), "curve": [asdict(point) for point in curve]})
    critic = fit_critic(features, valid)
    found = critic.probabilities(triple_features(encoder, *sentences([triple for triple, _ in made], spec.relations)))
    for (_, example), probability in zip(made, found, strict=True):
        judged = replace(example, fields={**example.fields, "critic": round(probability, 4)})
        if probability < spec.threshold:
            reason = f"valid with probability {probability:.2f}, the threshold is {spec.threshold:g}"
            yield Drop(judged, by="critic", reason=reason)
        else:
            yield judged


def sentences(triples: Sequence[Triple], relations: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Each head in the words of its relation, and the whole sentence. Raises RecipeError for an unknown relation."""
    unknown = next((triple.relation for triple in triples if triple.relation not in relations), None)
    if unknown is not None:
        raise RecipeError(f"generation.triples.relations: {unknown!r}, of a labelled row, is not among them; add it")
    heads = [filled(relations[triple.relation], event=triple.head) for triple in triples]
    return heads, [f"{head} {triple.tail}" for head, triple in zip(heads, triples, strict=True)]


def read_labelled(desk: Desk, path: str) -> tuple[list[Triple], list[bool]]:
    """The labelled triples. Raises DataError with the row that is none."""
    triples, valid = [], []
    for row in read_rows(SourceSpec(path=path), desk.progress):
        found: Mapping[str, Any] = row.row or {}
        if not {"head", "relation", "tail", "valid"} <= set(found) or not isinstance(found["valid"], bool):
            shown = json.dumps(dict(found))[:200]
            raise DataError(f"{row.origin}: a labelled triple needs head, relation, tail and valid: {shown}")
        triples.append(Triple(str(found["head"]), str(found["relation"]), str(found["tail"])))
        valid.append(found["valid"])
    if len(set(valid)) < 2:
        raise DataError(f"{path}: a critic needs valid and invalid triples to learn from")
    return triples, valid
