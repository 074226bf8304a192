"""A teacher in this process, on the student's text and on its own."""

from __future__ import annotations

import torch
from teacher_helpers import V, assert_same, batch, model, naive, segments, trained

from lmdistill.teachers import LocalTeacher, Retold, teacher_columns, with_context


def test_it_says_what_its_logits_say_and_packed_rows_do_not_see_each_other() -> None:
    given, teacher = batch(), model(1)
    speech = LocalTeacher(teacher, V).speak(given)
    assert len(speech.parts) == 1
    assert_same(speech.parts[0], naive(teacher, given), trained(given))
    assert speech.hidden_NK is not None
    assert speech.hidden_NK.shape == (given["input_ids"].numel(), 16)


def test_a_trimmed_vocabulary_is_renormalised() -> None:
    given, teacher = batch(), model(1, vocabulary=V + 30)
    kept = torch.randperm(V + 30, generator=torch.Generator().manual_seed(0))[:V].sort().values
    part = LocalTeacher(teacher, V, kept).speak(given).parts[0]
    whole = naive(teacher, {**given, "input_ids": kept[given["input_ids"]]})
    assert_same(part, whole[:, kept].log_softmax(-1), trained(given))


def test_with_a_text_of_its_own_it_speaks_of_the_answers_after_its_own_prompt() -> None:
    given, teacher = batch(), model(1)
    contexts = torch.randint(0, V, (len(segments(given)), 7), generator=torch.Generator().manual_seed(2)).tolist()
    expected = torch.zeros(given["input_ids"].numel(), V).double()
    width = given["input_ids"].shape[1]
    retold: list[list[Retold | None]] = [[] for _ in given["input_ids"]]
    for (number, first, end), context in zip(segments(given), contexts, strict=True):
        if not bool(trained(given).view(len(given["labels"]), -1)[number, first:end].any()):
            continue
        ids = given["input_ids"][number, first:end]
        retold[number].append(with_context(ids.tolist(), 2, context))
        with torch.no_grad():
            read = teacher(input_ids=torch.cat([torch.tensor(context), ids[2:]])[None]).logits[0].log_softmax(-1)
        expected[number * width + first + 1 : number * width + end] = read[len(context) - 1 :]
    part = LocalTeacher(teacher, V).speak({**given, **teacher_columns(given, retold)}).parts[0]
    assert_same(part, expected, trained(given))
    assert part.mask_N is not None
    assert int(part.mask_N.sum()) == int(trained(given).sum())
