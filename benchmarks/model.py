"""Makes the model of the `prefix` workload: Qwen2, 8 layers of 512, random weights of a fixed seed.

What it says means nothing; what it costs is that of a model in which long prompts matter. It speaks bytes,
with the tokenizer of examples/tiny-adder. Made once and kept; a folder that is there is complete.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

TINY = Path(__file__).resolve().parent.parent / "examples" / "tiny-adder"
SEED = 20261124
LAYERS = 8
HIDDEN = 512
HEAD = 64


def make(folder: Path) -> None:
    """Write the model, unless it is there."""
    if folder.exists():
        return
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config.from_pretrained(TINY)
    config.update(
        {
            "hidden_size": HIDDEN,
            "intermediate_size": 3 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "layer_types": ["full_attention"] * LAYERS,
            "num_attention_heads": HIDDEN // HEAD,
            "num_key_value_heads": HIDDEN // HEAD,
            "initializer_range": 0.02,
        }
    )
    torch.manual_seed(SEED)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    making = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    model.save_pretrained(making)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(TINY / name, making / name)
    making.rename(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
