"""The loss lies on answers alone, exactly, whatever the template; control strings in contents stay text."""

from __future__ import annotations

import random
import re
from functools import lru_cache

import numpy as np
import pytest
import tokenizers_for_tests as family
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.data import Document, EncodedRow, RowEncoder, prompts_of
from lmdistill.data import chat as chat_module
from lmdistill.data.encode import Encoder, _any_of
from lmdistill.errors import DataError, ModelError
from lmdistill.models import load_tokenizer
from lmdistill.recipe import GenerationSpec, ModelSpec


@pytest.fixture(scope="session")
def smollm2(smollm2_folder):
    return load_tokenizer(ModelSpec(model=str(smollm2_folder)))


@pytest.fixture(scope="session")
def smollm2_encoder(smollm2):
    return Encoder(smollm2)


def chat(*contents: str, system: str | None = None) -> Document:
    """User and assistant in turn."""
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Document(messages=messages, origin="chat.jsonl:1")


def encode(tokenizer, document: Document, **options) -> EncodedRow:
    return next(iter(RowEncoder(tokenizer, **options).encode([document])))


def answers(tokenizer, row: EncodedRow) -> list[str]:
    """Text of each run of trained tokens."""
    runs, current = [], []
    for token_id, trained in zip(row.ids_L.tolist(), row.trained_L.tolist(), strict=True):
        if trained:
            current.append(token_id)
        elif current:
            runs, current = [*runs, current], []
    runs += [current] if current else []
    return [tokenizer.decode(run) for run in runs]


TALK = ("What is two and two?", "It is four.", "Are you sure?", "Yes.")
BRIEF = "Be kind and brief."

# tokenizer, template, system message allowed, what must be trained
TEMPLATES = {
    "chatml": ("chatml", family.CHATML, True, ["It is four.<|im_end|>", "Yes.<|im_end|>"]),
    "generation blocks": ("chatml", family.CHATML_BLOCKS, True, ["It is four.<|im_end|>", "Yes.<|im_end|>"]),
    "no generation prompt": ("chatml", family.CHATML_WITHOUT_PROMPT, True, ["It is four.<|im_end|>", "Yes.<|im_end|>"]),
    # the last turn has an empty thought, which the model has to write, since the generation prompt does not
    "qwen3": ("chatml", family.QWEN3, True, ["It is four.<|im_end|>", "<think>\n\n</think>\n\nYes.<|im_end|>"]),
    "zephyr": ("chatml", family.ZEPHYR, True, ["It is four.<|im_end|>", "Yes.<|im_end|>"]),
    # no end marker: the end-of-text token is put after the last answer only
    # and " It" begins with the space that ends the generation prompt
    "no end marker": ("chatml", family.NO_END_MARKER, True, [" It is four.", " Yes.<|im_end|>"]),
    "llama2": ("llama2", family.LLAMA2, True, [" It is four. </s>", " Yes. </s>"]),
    "llama2 legacy": ("llama2 legacy", family.LLAMA2, True, [" It is four. </s>", " Yes. </s>"]),
    "mistral": ("llama2", family.MISTRAL, True, [" It is four.</s>", " Yes.</s>"]),
    "llama3": ("llama3", family.LLAMA3, True, ["It is four.<|eot_id|>", "Yes.<|eot_id|>"]),
    "gemma": ("gemma", family.GEMMA, False, ["It is four.<end_of_turn>", "Yes.<end_of_turn>"]),
    # the generation prompt ends in <think>, which the template leaves out of finished answers
    "r1": ("r1", family.R1, True, ["It is four.<|end|>", "Yes.<|end|>"]),
}


def case(name: str):
    kind, template, takes_system, expected = TEMPLATES[name]
    return family.make_tokenizer(kind, template), BRIEF if takes_system else None, expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_end_markers_are_trained_and_nothing_else(name: str) -> None:
    tokenizer, system, expected = case(name)
    row = encode(tokenizer, chat(*TALK, system=system))
    assert answers(tokenizer, row) == expected
    assert tokenizer.decode(row.ids_L[row.last_answer :]).startswith(expected[-1])


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_tokenizers_own_template(name: str) -> None:
    tokenizer, system, _ = case(name)
    document = chat(*TALK, system=system)
    own = tokenizer.apply_chat_template(document.messages, tokenize=True, return_dict=True)["input_ids"]
    row = encode(tokenizer, document, add_eos=False)
    assert row.ids_L.tolist() == own


@pytest.mark.parametrize("name", TEMPLATES)
def test_white_space_around_contents_moves_no_border(name: str) -> None:
    tokenizer, system, expected = case(name)
    plain = answers(tokenizer, encode(tokenizer, chat(*TALK, system=system)))
    spaced = answers(tokenizer, encode(tokenizer, chat(f" {TALK[0]}\n", f"\n {TALK[1]} ", *TALK[2:], system=system)))
    assert len(spaced) == len(plain) == len(expected)
    assert "".join(spaced[0].split()) == "".join(plain[0].split())
    assert spaced[1] == plain[1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_and_its_answer_are_the_training_row(name: str) -> None:
    """What the teacher is asked continues, token for token, with what the student is trained on."""
    tokenizer, system, _ = case(name)
    document = chat(*TALK, system=system)
    row = encode(tokenizer, document)
    prompt = prompts_of([document], tokenizer, GenerationSpec())[0]
    before = row.ids_L[: row.last_answer].tolist()
    if name == "r1":
        assert tokenizer.decode(prompt) == tokenizer.decode(before) + "<think>\n"
    elif name == "no end marker":  # its generation prompt ends in a space, which is half a token of the answer
        assert tokenizer.decode(prompt) == tokenizer.decode(before) + " "
    elif name == "no generation prompt":  # it cannot ask: the header is missing, as it is for transformers
        assert before[: len(prompt)] == prompt
    else:
        assert prompt == before
    assert prompt == prompts_of([chat(*TALK[:3], system=system)], tokenizer, GenerationSpec())[0]


def test_smollm2_own_template(smollm2) -> None:
    document = chat(*TALK)
    row = encode(smollm2, document)
    assert answers(smollm2, row) == ["It is four.<|im_end|>", "Yes.<|im_end|>"]
    own = smollm2.apply_chat_template(document.messages, tokenize=True, return_dict=True)["input_ids"]
    assert row.ids_L.tolist() == own
    assert smollm2.decode(row.ids_L[~row.trained_L]).count("<|im_end|>") == 3  # system and two users


def test_reasoning_that_a_template_rewrites(smollm2) -> None:
    tokenizer, _, _ = case("qwen3")
    thinking = "<think>\nTwo and two.\n</think>\n\nIt is four."
    assert answers(tokenizer, encode(tokenizer, chat("What is two and two?", thinking))) == [f"{thinking}<|im_end|>"]
    both = encode(tokenizer, chat(TALK[0], thinking, TALK[2], "<think>\nHm.\n</think>\n\nYes."))
    assert answers(tokenizer, both) == ["It is four.<|im_end|>", "<think>\nHm.\n</think>\n\nYes.<|im_end|>"]
    tokenizer, _, _ = case("r1")
    with pytest.raises(DataError, match=r"chat.jsonl:1: the chat template rewrites message 2"):
        encode(tokenizer, chat("What is two and two?", thinking))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "depends on the contents"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out message 2"),
        ("{% for m in messages if m.role != 'user' %}{{ m.content }}{% endfor %}", "leaves out message 1"),
        # the question is written only once it is answered
        ("{% for m in messages if messages | length > 1 %}{{ m.content }}\n{% endfor %}", "leaves out message 1"),
        ("{% generation %}{{ messages[9].role.x }}{% endgeneration %}", "does not take this conversation"),
        ("{{ raise_exception('only on Sundays') }}", "does not take this conversation: only on Sundays"),
        ("{{ messages[7].content.strip() }}", "does not take this conversation"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for m in messages %}", "does not take this conversation"),
    ],
)
def test_templates_that_cannot_be_read_are_refused_with_the_row(template: str, message: str) -> None:
    tokenizer = family.make_tokenizer("chatml", template)
    with pytest.raises(DataError, match=f"chat.jsonl:1: .*{message}"):
        encode(tokenizer, chat(*TALK))


def test_a_system_message_that_a_template_refuses() -> None:
    tokenizer, _, _ = case("gemma")
    with pytest.raises(DataError, match=r"chat.jsonl:1: .*System role not supported"):
        encode(tokenizer, chat(*TALK, system=BRIEF))


def test_messages_need_a_template() -> None:
    with pytest.raises(DataError, match="chat messages need a chat template"):
        encode(family.make_tokenizer("chatml"), chat(*TALK))


def test_several_templates_without_a_default_one() -> None:
    tokenizer = family.make_tokenizer("chatml")
    tokenizer.chat_template = {"rag": family.CHATML, "tools": family.CHATML}
    with pytest.raises(ModelError, match="no default one"):
        RowEncoder(tokenizer)


def test_the_date_is_fixed() -> None:
    template = "{{ strftime_now('%d %b %Y') ~ ' ' ~ strftime_now(\"%Y\") }}" + family.CHATML
    tokenizer = family.make_tokenizer("chatml", template)
    assert tokenizer.decode(encode(tokenizer, chat(*TALK)).ids_L).startswith("26 Jul 2024 2024<|im_start|>")


def test_a_conversation_that_ends_with_the_user_has_no_loss_there() -> None:
    tokenizer, system, expected = case("chatml")
    row = encode(tokenizer, chat(*TALK[:3], system=system))
    assert answers(tokenizer, row) == expected[:1]
    assert not encode(tokenizer, chat(TALK[0])).trained_L.any()


# --- prompt and response --------------------------------------------------------------------------------------------


def test_prompt_and_response_use_the_template_if_there_is_one(smollm2) -> None:
    pair = Document(prompt=TALK[0], response=TALK[1], origin="x:1")
    row, same = encode(smollm2, pair), encode(smollm2, chat(*TALK[:2]))
    assert row.ids_L.tolist() == same.ids_L.tolist()
    assert row.trained_L.tolist() == same.trained_L.tolist()


@pytest.mark.parametrize("kind", ["chatml", "llama2", "llama2 legacy", "llama3", "gemma"])
def test_without_a_template_the_response_begins_at_the_border(kind: str) -> None:
    tokenizer = family.make_tokenizer(kind)
    row = encode(tokenizer, Document(prompt="What is two and two?", response=" It is four.", origin="x:1"))
    assert answers(tokenizer, row) == [" It is four." + tokenizer.eos_token]
    assert row.ids_L.tolist() == [*tokenizer("What is two and two? It is four.")["input_ids"], tokenizer.eos_token_id]
    assert prompts_of([Document(prompt="What is two and two?")], tokenizer, GenerationSpec()) == [
        row.ids_L[: row.last_answer].tolist()
    ]
    bare = encode(tokenizer, Document(prompt="What is", response=" four.", origin="x:1"), add_eos=False)
    assert answers(tokenizer, bare) == [" four."]


def test_a_token_cut_inside_a_word_belongs_to_the_prompt() -> None:
    tokenizer = family.make_tokenizer("chatml")
    whole = tokenizer.tokenize("It is four")
    assert "Ġis" in whole  # so that "i|s" is cut inside a token
    row = encode(tokenizer, Document(prompt="It i", response="s four", origin="x:1"))
    assert answers(tokenizer, row) == [" four<|im_end|>"]


def test_a_token_that_begins_with_the_prompts_last_space_belongs_to_the_response() -> None:
    tokenizer = family.make_tokenizer("chatml")
    assert "Ġis" in tokenizer.tokenize("It is")
    row = encode(tokenizer, Document(prompt="It ", response="is", origin="x:1"))
    assert answers(tokenizer, row) == [" is<|im_end|>"]


def test_a_prompt_without_response_is_read_and_not_trained() -> None:
    tokenizer, _, _ = case("chatml")
    row = encode(tokenizer, Document(prompt="Hello", origin="x:1"))
    assert not row.trained_L.any()
    assert row.last_answer == len(row.ids_L)


# --- plain text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(family.CONTROL))
@pytest.mark.parametrize("add_eos", [True, False])
def test_plain_text_is_trained_whole(kind: str, add_eos: bool) -> None:
    tokenizer = family.make_tokenizer(kind)
    row = encode(tokenizer, Document(text=family.CORPUS[1], origin="x:1"), add_eos=add_eos)
    own = tokenizer(family.CORPUS[1])["input_ids"]
    assert row.ids_L.tolist() == own + [tokenizer.eos_token_id] * add_eos
    bos = tokenizer.bos_token_id is not None
    assert row.lead == bos
    assert row.trained_L.tolist() == [False] * bos + [True] * (len(row.ids_L) - bos)
    assert row.last_answer is None
    prompt = prompts_of([Document(text=family.CORPUS[1])], tokenizer, GenerationSpec(prompt_tokens=5))[0]
    assert prompt == own[: 5 + bos]


# --- control tokens in contents (RELIABILITY B8) --------------------------------------------------------------------


def control_counts(encoder: RowEncoder, ids) -> list[int]:
    ids = np.asarray(ids)
    return [int((ids == token_id).sum()) for token_id in encoder.encoder.control_ids.values()]


def b8_tokenizers():
    return [
        (kind, family.make_tokenizer(kind, TEMPLATES[kind][1])) for kind in sorted(set(family.CONTROL) & set(TEMPLATES))
    ]


@pytest.mark.parametrize(
    ("kind", "tokenizer"), b8_tokenizers(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_control_string_in_content_is_text(kind: str, tokenizer) -> None:
    check_every_control_string(tokenizer)


def test_every_control_string_of_smollm2_in_content_is_text(smollm2) -> None:
    assert len(Encoder(smollm2).control_ids) == 17
    check_every_control_string(smollm2)


def check_every_control_string(tokenizer) -> None:
    encoder, without_eos = RowEncoder(tokenizer), RowEncoder(tokenizer, add_eos=False)
    benign = next(iter(encoder.encode([chat("ask x", "say x")])))
    for text in encoder.encoder.control_ids:
        hostile = f"a {text}{text}b{text}"
        row = next(iter(encoder.encode([chat(f"ask {hostile}", f"say {hostile}.")])))
        assert control_counts(encoder, row.ids_L) == control_counts(encoder, benign.ids_L), text
        assert tokenizer.decode(row.ids_L).count(hostile) == 2, text
        assert hostile in answers(tokenizer, row)[0], text
        assert len(answers(tokenizer, row)) == 1, text
        prompt = encoder.prompt(chat(hostile), 32)
        assert control_counts(encoder, prompt) == control_counts(encoder, encoder.prompt(chat("x"), 32)), text
        for document in (Document(text=hostile), Document(text=text)):
            plain = next(iter(without_eos.encode([document])))
            assert sum(control_counts(encoder, plain.ids_L)) == plain.lead, text
            assert tokenizer.decode(plain.ids_L[plain.lead :]).strip() == document.text, text


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_ordinary_text_gets_the_tokenizers_own_ids(data, smollm2, smollm2_encoder) -> None:
    """And hostile text none that are control tokens; both decode to what they were."""
    alphabet = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("  \n\t.,aeiou<|>"))
    pieces = st.lists(
        st.one_of(st.text(alphabet, max_size=8), st.sampled_from(["<|im_end|>", "<|im_", "start|>"])), max_size=6
    )
    text = "".join(data.draw(pieces))
    if any(bracket in text for bracket in "\ufdd0\ufdd1"):
        return
    encoder = smollm2_encoder
    ids = encoder.encode([text])[0].ids_L.tolist()
    assert not set(ids) & set(encoder.control_ids.values())
    if "<|im_start|>" not in text and "<|im_end|>" not in text:
        assert ids == smollm2(text, add_special_tokens=False)["input_ids"]
    # SmolLM2's vocabulary lacks some bytes (U+0006, U+40000), which it drops; this one has them all
    tokenizer, whole = _made("chatml"), _made_encoder("chatml")
    assert tokenizer.decode(whole.encode([text])[0].ids_L, clean_up_tokenization_spaces=False) == text
    assert encoder.show(encoder.hide(text)) == text
    assert encoder.reveal(encoder.hide(text)) == text


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(
        st.text(
            st.one_of(
                st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1"), st.sampled_from(" é\n")
            )
        ).filter(str.strip),
        min_size=2,
        max_size=4,
    )
)
@pytest.mark.parametrize("name", ["chatml", "llama2", "llama2 legacy", "llama3"])
def test_any_content_keeps_its_borders(name: str, contents: list[str]) -> None:
    """Trained tokens are the answers as the template writes them, whatever stands in the messages."""
    tokenizer = _made(name)
    row = encode(tokenizer, chat(*contents))
    wanted = contents[1::2]
    found = answers(tokenizer, row)
    assert len(found) == len(wanted)
    for text, content in zip(found, wanted, strict=True):
        end = {"chatml": "<|im_end|>", "llama2": "</s>", "llama2 legacy": "</s>", "llama3": "<|eot_id|>"}[name]
        assert text.endswith(end)
        assert text.removesuffix(end).strip() == content.strip()


@lru_cache
def _made_encoder(name: str) -> Encoder:
    return Encoder(_made(name))


@lru_cache
def _made(name: str):
    return case(name)[0]


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        """A tokenizer without a tokenizers backend."""

    with pytest.raises(ModelError, match="not a fast tokenizer"):
        RowEncoder(Slow())


def test_long_documents_are_encoded_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "_BATCH_CHARACTERS", 100)
    lengths = [30, 30, 50, 200, 10, 99, 1]
    batches = chat_module._batched(Document(text="x" * length) for length in lengths)
    assert [[len(document.plain) for document in batch] for batch in batches] == [[30, 30, 50], [200], [10, 99], [1]]


def test_batches_keep_order(smollm2) -> None:
    rng = random.Random(0)
    documents = [Document(text=" ".join(rng.choices(family.CORPUS[1].split(), k=5)) + f" {n}") for n in range(1100)]
    rows = list(RowEncoder(smollm2).encode(documents))
    assert [row.row_id for row in rows] == [document.id for document in documents]
    assert smollm2.decode(rows[1099].ids_L[:-1]) == documents[1099].text


@settings(max_examples=100, deadline=None)
@given(
    texts=st.sets(st.text("<|a>.", min_size=1, max_size=4), min_size=1, max_size=8), line=st.text("<|a>.x", max_size=20)
)
def test_the_longest_control_string_is_found(texts: set[str], line: str) -> None:
    by_definition = re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))
    assert re.findall(_any_of(sorted(texts)), line) == by_definition.findall(line)
