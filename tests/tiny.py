"""A tiny real model and a tiny real tokenizer, made here, offline."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 199
SENTENCES = (
    "The quick brown fox jumps over the lazy dog while the quiet cat sleeps.",
    "Anna asks Ben whether the train to Oslo leaves at seven or at eight.",
    "Ben says that it leaves at half past seven and that he has bought the tickets.",
    "How many apples does she have left? She has 12 - 5 = 7 apples left.",
    "Summarize the dialogue in one sentence: they will meet at the station.",
    "#Person1#: Could you send me the report? #Person2#: Yes, before noon.",
    "Thank you very much! You are welcome; see you tomorrow, or on 30 May 2024.",
)


def llama_config(**changes: Any) -> LlamaConfig:
    """The shape of the tests' Llamas, but for these changes; eos 1, bos 0, pad 2, as `tiny_tokenizer` has them."""
    usual = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**usual | changes)


def random_llama(config: LlamaConfig) -> LlamaForCausalLM:
    """A float32 Llama whose weights are scaled up, so that its logits are far from flat."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(20240530)
        model = LlamaForCausalLM(config).to(torch.float32)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.2)
    return model.eval()


def make_llama() -> LlamaForCausalLM:
    """A random float32 Llama with 199 tokens, whose greedy choices are far from ties.

    Shared by all tests of a session: do not change its weights or its generation config.
    """
    model = random_llama(llama_config())
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with at most 199 tokens, trained on a few sentences; no chat template, adds no BOS itself.

    Do not change it (padding side, pad token); copy it with `copy.deepcopy` where a test needs another one.
    """
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>", "<unk>"],
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
