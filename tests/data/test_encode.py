"""Encoders of unusual tokenizers: without control tokens, unigram, with names that are no added tokens, or broken."""

from __future__ import annotations

import pytest
import tokenizers_for_tests as family
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lmdistill.data import Document, RowEncoder
from lmdistill.data.encode import Encoder
from lmdistill.errors import ModelError


def words(*vocabulary: str, **options) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def test_a_tokenizer_without_control_tokens() -> None:
    tokenizer = words("<unk>", "a", "b")
    encoder = Encoder(tokenizer)
    assert encoder.control_ids == {}
    assert encoder.encode(["a b c"])[0].ids_L.tolist() == [1, 2, 0]
    assert encoder.hide("a <s>") == encoder.reveal("a <s>") == "a <s>"
    assert not encoder.has_control("a <s>")
    assert not encoder.ends_with_control("a <s>")
    assert encoder.marker_end("a <s>", 1) == 1
    row = next(iter(RowEncoder(tokenizer).encode([Document(text="a b")])))
    assert row.ids_L.tolist() == [1, 2]  # there is no end-of-text token to put


def test_a_control_token_that_is_a_word_of_the_vocabulary_only() -> None:
    """Here `</s>` is no added token, so that the tokenizer itself takes it for a word wherever it stands."""
    tokenizer = words("<unk>", "a", "</s>", unk_token="<unk>", eos_token="</s>")
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer._tokenizer = backend
    assert tokenizer("a </s>")["input_ids"] == [1, 2]
    encoder = Encoder(tokenizer)
    assert encoder.control_ids["</s>"] == 2
    assert encoder.encode(["a </s>"])[0].ids_L.tolist() == [1, 0]
    assert encoder.encode(["a " + encoder.control("</s>")])[0].ids_L.tolist() == [1, 2]


def test_a_name_that_the_vocabulary_lacks_is_no_control_token() -> None:
    tokenizer = words("<unk>", "a", unk_token="<unk>")
    tokenizer._special_tokens_map["eos_token"] = "</s>"
    assert tokenizer.convert_tokens_to_ids("</s>") == 0
    assert set(Encoder(tokenizer).control_ids) == {"<unk>"}


def test_a_unigram_vocabulary() -> None:
    """Its search takes the best piece for any text, control tokens included, unless they are renamed there too."""
    pieces = [("<unk>", 0.0), ("<s>", -1.0), *((letter, -5.0) for letter in "abc<>s▁")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False, special=True)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    encoder = Encoder(wrapped)
    assert wrapped("ab<s>", add_special_tokens=False)["input_ids"][-1] == 1
    ids = encoder.encode(["ab<s>c"])[0].ids_L.tolist()
    assert 1 not in ids
    assert wrapped.convert_ids_to_tokens(ids) == ["▁", "a", "b", "<", "s", ">", "c"]
    assert encoder.encode([f"ab{encoder.control('<s>')}"])[0].ids_L.tolist()[-1] == 1


def test_tokens_that_a_tokenizer_adds_at_both_ends() -> None:
    tokenizer = family.make_tokenizer("llama3")
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    ids = tokenizer.convert_tokens_to_ids([bos, eos])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=list(zip([bos, eos], ids, strict=True))
    )
    encoder = Encoder(tokenizer)
    assert (encoder.lead_ids, encoder.tail_ids) == ([ids[0]], [ids[1]])
    document = Document(text="It is four.")
    row = next(iter(RowEncoder(tokenizer).encode([document])))
    assert row.ids_L.tolist() == tokenizer("It is four.")["input_ids"]  # one end-of-text token, not two
    assert row.ids_L.tolist()[-1] == ids[1]
    bare = next(iter(RowEncoder(tokenizer, add_eos=False).encode([document])))
    assert bare.ids_L.tolist() == row.ids_L.tolist()[:-1]


def test_tokenizers_that_cannot_be_used() -> None:
    nothing = Tokenizer(models.BPE())  # no vocabulary, no unknown token: every text is empty
    with pytest.raises(ModelError, match="encodes 'a' as nothing"):
        Encoder(PreTrainedTokenizerFast(tokenizer_object=nothing))
    prefixed = words("<unk>", "a")

    class Odd(PreTrainedTokenizerFast):
        """Encodes a text otherwise when special tokens are added."""

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [0] if add_special_tokens else [1]}

    with pytest.raises(ModelError, match=r"'a' as \[1\] alone and \[0\] with special tokens"):
        Encoder(Odd(tokenizer_object=prefixed.backend_tokenizer))
