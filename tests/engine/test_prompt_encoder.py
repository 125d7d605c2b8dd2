"""From text to ids: the user's own arguments for the tokenizer, each prompt with its own."""

from __future__ import annotations

import copy

import pytest
from tokenizers import processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llmsearch_optuna.engine.engine import Engine
from llmsearch_optuna.engine.prompt_encoder import PromptEncoder
from llmsearch_optuna.engine.request import Request
from llmsearch_optuna.engine.sampling.params import GenerationParams
from llmsearch_optuna.errors import DecodingError, InputError
from llmsearch_optuna.models.tokenization import Positions, PromptTokens
from tests.engine.architectures import make
from tests.oracle import hf_generate

PARAMS = GenerationParams.of({"max_new_tokens": 6})
TEXT = "How many apples does she have left?"


@pytest.fixture(scope="module")
def with_bos(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_arguments_belong_to_the_request(with_bos: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(PromptTokens(with_bos), Positions())
    bare = with_bos(TEXT, add_special_tokens=False)["input_ids"]
    cut = {"truncation": True, "max_length": 4}
    asked = [{}, {"add_special_tokens": False}, cut, {**cut, "add_special_tokens": False}, {}]
    found = [encoder.encode(Request("t", 0, TEXT, PARAMS, encode_args=args)) for args in asked]
    bos = with_bos.bos_token_id
    assert found == [(bos, *bare), tuple(bare), (bos, *bare[:3]), tuple(bare[:4]), (bos, *bare)]


def test_a_prompt_fits_once_it_is_truncated(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(PromptTokens(tiny_tokenizer), Positions(shared=12))
    with pytest.raises(DecodingError, match="exceed the model's context of 12"):
        encoder.encode(Request("t", 0, TEXT, PARAMS))
    cut = {"truncation": True, "max_length": 6}
    assert len(encoder.encode(Request("t", 0, TEXT, PARAMS, encode_args=cut))) == 6


@pytest.mark.parametrize("architecture", ["bart", "t5", "llama"])
def test_what_has_no_room_ends_with_the_reason(architecture: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = make(architecture)
    engine = Engine(model, tiny_tokenizer)
    room = 10**6 if architecture == "t5" else model.config.max_position_embeddings
    exceeded = {
        "bart": ("exceed the 256 positions of the encoder", "exceeds the 256 positions of the decoder"),
        "llama": (f"exceed the model's context of {room}",) * 2,
    }
    if architecture == "t5":
        engine.generate(["T" * 300], {"max_new_tokens": 2})
        return
    fits = room if architecture == "bart" else room - 2
    engine.generate(["T" * fits], {"max_new_tokens": 2})
    with pytest.raises(DecodingError, match=exceeded[architecture][0]):
        engine.generate(["T" * (fits + 1)], {"max_new_tokens": 2})
    with pytest.raises(DecodingError, match=exceeded[architecture][1]):
        engine.generate(["T"], {"max_new_tokens": room + 1})
    if architecture == "bart":
        ended = engine.generate(["T"], {"max_new_tokens": room, "eos_token_id": None})
        assert len(ended[0].token_ids) == room


def test_truncated_prompts_are_decoded_as_such(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, batch_size=4)
    texts = [TEXT, "Anna asks Ben whether the train leaves."]
    engine.submit(
        Request("t", n, text, PARAMS, encode_args={"truncation": True, "max_length": 5}) for n, text in enumerate(texts)
    )
    found = {}
    while len(found) < 2:
        found |= {f.request.row: f.completion for f in engine.poll()}
    for row, text in enumerate(texts):
        ids = tiny_tokenizer(text)["input_ids"][:5]
        assert found[row] is not None
        assert list(found[row].token_ids) == hf_generate(tiny_llama, ids, max_new_tokens=6)
        assert found[row].prompt_tokens == 5


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("plain", [False, True])
def test_text_is_decoded_as_the_user_wants(
    beams: int, plain: bool, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = Engine(tiny_llama, tiny_tokenizer, tokenizer_decode_args={"skip_special_tokens": False})
    first = engine.generate([TEXT], {"max_new_tokens": 3})[0].token_ids[0]
    # every text ends with a special token, which is shown
    params = {"max_new_tokens": 5, "num_beams": beams, "forced_eos_token_id": tiny_tokenizer.eos_token_id}
    if plain:
        params["guidance_scale"] = 1.1
    shown = engine.generate([TEXT], params)[0]
    assert shown.text == tiny_tokenizer.decode(shown.token_ids, skip_special_tokens=False)
    assert shown.text.endswith("</s>")
    skipped = Engine(tiny_llama, tiny_tokenizer).generate([TEXT], params)[0]
    assert skipped.token_ids == shown.token_ids
    assert skipped.text == tiny_tokenizer.decode(shown.token_ids, skip_special_tokens=True)
    assert first >= 0


def test_arguments_that_a_tokenizer_does_not_take_are_refused(tiny_llama: LlamaForCausalLM) -> None:
    class Strict:
        all_special_tokens = ()

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": []}

        def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
            return ""

    with pytest.raises(InputError, match="tokenizer_decode_args={'spaces': True} are not for this tokenizer"):
        Engine(tiny_llama, Strict(), tokenizer_decode_args={"spaces": True})  # type: ignore[arg-type]


def test_a_token_that_the_model_does_not_know_is_named_before_anything_is_decoded(tiny_tokenizer) -> None:
    request = Request("t", 3, "some text", GenerationParams.of({"max_new_tokens": 4}))
    ids = PromptEncoder(PromptTokens(tiny_tokenizer), Positions()).encode(request)
    assert PromptEncoder(PromptTokens(tiny_tokenizer), Positions(), max(ids) + 1).encode(request) == ids
    with pytest.raises(
        InputError, match=rf"row 3: the prompt has token {max(ids)} .* embedding knows {max(ids)} tokens"
    ):
        PromptEncoder(PromptTokens(tiny_tokenizer), Positions(), max(ids)).encode(request)
