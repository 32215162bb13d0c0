"""Writes a tiny model of random weights in GGUF, llama.cpp's format; for a Python that has the package gguf.

python make_gguf.py FILE. Its tokens are bytes, so that it takes any text; what it says makes no sense.
"""

from __future__ import annotations

import sys

import gguf
import numpy as np

CONTEXT, WIDTH, INNER, HEADS = 512, 64, 128, 4
UNKNOWN, BEGIN, END = 0, 1, 2


def main(path: str) -> None:
    """Write it."""
    tokens = [
        b"<unk>",
        b"<s>",
        b"</s>",
        *(f"<0x{byte:02X}>".encode() for byte in range(256)),
        "\u2581".encode(),
    ]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, kinds.NORMAL]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_unk_token_id(UNKNOWN)
    dice = np.random.default_rng(1)

    def add(name: str, *shape: int) -> None:
        values = np.ones(shape) if len(shape) == 1 else dice.normal(0, 0.1, shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    add("token_embd", len(tokens), WIDTH)
    add("output_norm", WIDTH)
    add("output", len(tokens), WIDTH)
    add("blk.0.attn_norm", WIDTH)
    for part in ("q", "k", "v", "output"):
        add(f"blk.0.attn_{part}", WIDTH, WIDTH)
    add("blk.0.ffn_norm", WIDTH)
    add("blk.0.ffn_gate", INNER, WIDTH)
    add("blk.0.ffn_up", INNER, WIDTH)
    add("blk.0.ffn_down", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
