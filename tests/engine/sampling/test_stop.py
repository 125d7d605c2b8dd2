"""Stops are found at the token that completes them, on generated text only, as if all text were decoded each time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, StoppingCriteriaList

from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.engine.sampling.stop import StopOnSequences, Stopper, check_decode_args
from llmsearch_optuna.errors import InputError

LIMIT = 60
TEXT = "The café of Zoë 🙂 is open… until 8. Ask Ben's naïve friend!\n\nQuestion: 你好 or not? "


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces and bytes as in Llama 2: what has no piece becomes byte tokens, and the first space is stripped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzBAQTZ.:!?8'", "é", "▁a", "▁o", "en", "st", "ue", "ion", "▁is"]
    bpe = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """Words and their continuations as in BERT; spaces before punctuation are cleaned away."""
    pieces = ["[UNK]", "[SEP]", "the", "ca", "##f", "##é", "is", "open", ".", "!", "n't", "'s", "do", "##n", "?", ","]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizer: PreTrainedTokenizerFast) -> dict[str, PreTrainedTokenizerFast]:
    with_specials = copy.deepcopy(tiny_tokenizer)
    with_specials.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    with_specials.add_tokens([AddedToken("Question", special=False)])
    return {
        "bytes": tiny_tokenizer,
        "specials": with_specials,
        "fallback": byte_fallback_tokenizer(),
        "word pieces": word_piece_tokenizer(),
    }


def params(**values: Any) -> GenerationParams:
    return GenerationParams.of({"max_new_tokens": LIMIT, **values})


def decode(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def by_definition(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int], stops: Sequence[str]) -> tuple[int, str]:
    """How many tokens until a stop stands in the decoded text (all if never), and the text before it."""
    for count in range(1, len(tokens) + 1):
        text = decode(tokenizer, tokens[:count])
        places = [text.index(stop) for stop in stops if stop in text]
        if places:
            return count, text[: min(places)]
    return len(tokens), decode(tokenizer, tokens)


@given(data=st.data(), name=st.sampled_from(["bytes", "specials", "fallback", "word pieces"]))
def test_stop_strings_as_by_definition(
    data: st.DataObject, name: str, tokenizers: dict[str, PreTrainedTokenizerFast]
) -> None:
    """Random tokens (broken characters included) and real text, stops cut out of what they decode to."""
    tokenizer = tokenizers[name]
    text = data.draw(st.lists(st.sampled_from(TEXT.split(" ")), max_size=12).map(" ".join))
    real = tokenizer(text, add_special_tokens=False)["input_ids"]
    noise = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    tokens = (real + noise if data.draw(st.booleans()) else noise + real)[:LIMIT]
    whole = decode(tokenizer, tokens).replace("�", "")
    stops = []
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, max(0, len(whole) - 1)))
        stops.append(whole[start : start + data.draw(st.integers(1, 20))] or "never")
    count, expected = by_definition(tokenizer, tokens, stops)
    stopper = Stopper(params(stop=stops), tokenizer)
    state = stopper.replay(tokens)
    assert (len(state.token_ids), state.text()) == (count, expected)
    assert stopper.finish(tokens) == (expected, state.reason or "length")


@example(text="🙂🙂", stop="🙂")
@example(text="ab\n\ncd", stop="\n\n")
@given(text=st.text(max_size=30), stop=st.text(min_size=1, max_size=4))
def test_text_before_the_stop(text: str, stop: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Byte-level tokens hold any text; what comes out is the text before the stop."""
    tokens = [token for char in text + stop for token in tiny_tokenizer(char, add_special_tokens=False)["input_ids"]]
    if decode(tiny_tokenizer, tokens) != text + stop:
        return  # some control characters have no byte token in the tiny vocabulary
    shown, reason = Stopper(params(stop=stop, max_new_tokens=500), tiny_tokenizer).finish(tokens)
    assert shown == (text + stop).split(stop)[0]
    assert reason == "stop"


def test_reasons_and_their_precedence(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    (a,), (b,) = (tiny_tokenizer(char, add_special_tokens=False)["input_ids"] for char in "ab")
    eos = tiny_tokenizer.eos_token_id

    def finish(tokens: list[int], **values: Any) -> tuple[str, str]:
        return Stopper(params(eos_token_id=eos, **values), tiny_tokenizer).finish(tokens)

    assert finish([a, b, eos, a]) == ("ab", "eos")
    assert finish([a, b], max_new_tokens=2) == ("ab", "length")
    assert finish([a, b, a], max_new_tokens=2) == ("ab", "length")
    assert finish([a, b, a], stop="b") == ("a", "stop")
    assert finish([a, b], stop="b", max_new_tokens=2) == ("a", "stop")
    assert finish([a, b, eos], stop_token_sequences=[[b, eos]]) == ("a", "eos")
    assert finish([a, b, b], stop_token_sequences=[[b, b]]) == ("a", "stop")
    assert Stopper(params(eos_token_id=[a, eos]), tiny_tokenizer).finish([b, a]) == ("ba", "eos")


def test_overlapping_sequences_match_at_their_first_end(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    stopper = Stopper(params(stop_token_sequences=[[5, 5, 6], [7, 5]]), tiny_tokenizer)
    assert stopper.replay([5, 5, 5, 6, 9]).token_ids == [5, 5, 5, 6]
    assert stopper.replay([5, 7, 5, 6]).token_ids == [5, 7, 5]


def test_a_special_token_stops_by_its_name(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = tokenizers["specials"]
    tokens = tokenizer("Anna<|turn|>Ben", add_special_tokens=False)["input_ids"]
    state = Stopper(params(stop="<|turn|>"), tokenizer).replay(tokens)
    assert state.text() == "Anna"
    assert state.token_ids[-1] == tokenizer.convert_tokens_to_ids("<|turn|>")
    assert Stopper(params(stop="aB"), tokenizer).finish(tokens) == ("Ann", "stop")


def test_each_row_has_its_own_state(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    stopper = Stopper(params(stop_token_sequences=[[5, 6]]), tiny_tokenizer)
    first, second = stopper.start(), stopper.start()
    assert first.push(5) is None
    assert second.push(6) is None
    assert first.push(6) == "stop"
    assert second.push(6) is None


def test_called_on_a_path_it_knows_stops_only(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    stopper = Stopper(params(eos_token_id=1, stop_token_sequences=[[5, 6]], max_new_tokens=2), tiny_tokenizer)
    assert stopper((4, 5, 6)) == "stop"
    assert stopper((5, 1)) is None


def test_a_mistyped_argument_of_decode_is_not_ignored(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"'skip_specials' is no argument of decode; did you mean 'skip_special"):
        check_decode_args(tiny_tokenizer, {"skip_specials": False})
    args = {"skip_special_tokens": False, "of_a_tokenizer_of_mine": 1}
    assert check_decode_args(tiny_tokenizer, args) == args


class TestStopOnSequences:
    def test_rows_of_generate_stop_on_their_own(self, tiny_llama: LlamaForCausalLM) -> None:
        prompts = torch.tensor([[9, 10, 11], [40, 41, 42], [90, 3, 17]])
        free = tiny_llama.generate(prompts, max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=2)
        assert not (free[:, 3:] == 0).any()
        sequence = free[0, 5:7].tolist()
        criteria = StopOnSequences(prompt_length=3, sequences=[sequence])
        stopped = tiny_llama.generate(
            prompts,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=0,  # without one, generate does not pad rows that have ended
            pad_token_id=2,
            stopping_criteria=StoppingCriteriaList([criteria]),
        )
        expected = torch.full_like(free, 2)
        for row, tokens in enumerate(free.tolist()):
            ends = [end for end in range(5, 16) if tokens[end - 2 : end] == sequence]
            end = min(ends, default=15)
            expected[row, :end] = free[row, :end]
        assert torch.equal(stopped, expected[:, : stopped.shape[1]])

    def test_never_inside_or_across_the_prompt(self) -> None:
        criteria = StopOnSequences(prompt_length=2, sequences=[[7, 8]])
        rows = torch.tensor([[7, 8, 8], [3, 7, 8]])
        assert criteria(rows, None).tolist() == [False, False]
        assert criteria(torch.tensor([[3, 3, 7, 8]]), None).tolist() == [True]
        assert criteria(torch.tensor([[7, 8]]), None).tolist() == [False]

    def test_strings(self, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
        tokens = tiny_tokenizer("Anna asks", add_special_tokens=False)["input_ids"]
        criteria = StopOnSequences(prompt_length=0, stop=["a a"], tokenizer=tiny_tokenizer)
        ends = [criteria(torch.tensor([tokens[:count]]), None).item() for count in range(1, len(tokens) + 1)]
        shown = ["a a" in decode(tiny_tokenizer, tokens[:count]) for count in range(1, len(tokens) + 1)]
        assert ends == shown
        assert any(ends)

    def test_what_is_missing_is_said(self) -> None:
        with pytest.raises(InputError, match="tokenizer="):
            StopOnSequences(prompt_length=0, stop="x")
        with pytest.raises(InputError, match="nothing to stop on"):
            StopOnSequences(prompt_length=0)
        with pytest.raises(InputError, match="stop_token_sequences"):
            StopOnSequences(prompt_length=0, sequences=[[]])


@pytest.mark.parametrize(
    ("stop", "before", "rest"),
    [
        ("<|turn|>user", "the answer", "<|turn|>user says"),
        ("<|turn|> ", "the answer", "<|turn|>  more"),
        ("end<|turn|>", "the answer ", "end<|turn|>x"),
        (" so<|turn|>user a", "the answer", " so<|turn|>user ab"),
        ("<|turn|><|turn|>", "one<|turn|>two", "<|turn|><|turn|>x"),
    ],
)
def test_a_stop_string_with_a_special_token_in_it_is_met(
    tokenizers: dict[str, PreTrainedTokenizerFast], stop: str, before: str, rest: str
) -> None:
    tokenizer = tokenizers["specials"]
    tokens = tokenizer.encode(before + rest, add_special_tokens=False)
    state = Stopper(params(stop=[stop]), tokenizer).replay(tokens)
    assert state.reason == "stop"
    assert state.text() == before.replace("<|turn|>", "")
    shortest = next(
        n for n in range(1, len(tokens) + 1) if stop in str(tokenizer.decode(tokens[:n], skip_special_tokens=False))
    )
    assert len(state.token_ids) == shortest
    criteria = StopOnSequences(prompt_length=1, stop=stop, tokenizer=tokenizer)
    found = [bool(criteria(torch.tensor([[7, *tokens[:n]]]), None)[0]) for n in (shortest - 1, shortest)]
    assert found == [False, True]


def test_text_that_only_looks_like_a_stop_with_a_special_token_goes_on(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    tokenizer = tokenizers["specials"]
    tokens = tokenizer.encode("one<|turn|>two user three", add_special_tokens=False)
    state = Stopper(params(stop=["<|turn|>user"]), tokenizer).replay(tokens)
    assert state.reason is None
    assert state.text() == "onetwo user three"
