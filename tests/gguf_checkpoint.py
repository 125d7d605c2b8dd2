"""A tiny real GGUF file: the weights of a Llama in float32, named and ordered as llama.cpp has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def save_gguf(model: LlamaForCausalLM, path: Path, sampling: Mapping[str, float | int | str] | None = None) -> None:
    """Write the file, with the sampling settings that it recommends; it has no tokenizer."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    for name, value in (sampling or {}).items():
        add = {float: writer.add_float32, int: writer.add_int32, str: writer.add_string}[type(value)]
        add(f"general.sampling.{name}", value)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    for name, weight in model.state_dict().items():
        values = weight.float().numpy()
        for projection, count in heads.items():
            if projection in name:
                values = _interleaved(values, count)
        writer.add_tensor(_place(name), values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _place(name: str) -> str:
    (known,) = (theirs for ours, theirs in _NAMES.items() if name.endswith(f"{ours}.weight"))
    layer = f"blk.{name.split('.')[2]}." if name.startswith("model.layers.") else ""
    return f"{layer}{known}.weight"


def _interleaved(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp turns neighbouring dimensions, transformers those half a head apart."""
    halves = values.reshape(heads, 2, -1, values.shape[1])
    return halves.swapaxes(1, 2).reshape(values.shape)
