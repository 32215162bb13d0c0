"""Ask tiny-adder all 10,000 sums through vLLM, chat template included, at temperature 0.

It prints the accuracy and each wrong answer, and exits with 1 below 99.9% right. This is the judgement that
counts: `train.py` scores with transformers, whose arithmetic differs from vLLM's in the last bits. Training
is left to `train.py`. It fails with vLLM's own error if the folder is not a model that vLLM can load.
"""

import argparse
import os
import pathlib
import sys
import time
from typing import Any

OPERANDS = 100
REQUIRED_ACCURACY = 0.999


def ask_all(model: pathlib.Path, max_model_len: int) -> dict[str, tuple[str, str, str | None]]:
    """Run every sum in one offline batch.

    Returns:
        For each sum, such as "17+25", the right answer, the model's answer, and vLLM's reason for its end.
    """
    # In GiB. vLLM sizes a CPU's KV cache by the whole machine unless told; this model needs next to none.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm

    llm = vllm.LLM(str(model), dtype="bfloat16", max_model_len=max_model_len, enforce_eager=True)
    sums = [(left, right) for left in range(OPERANDS) for right in range(OPERANDS)]
    started_s = time.monotonic()
    chats: list[Any] = [[{"role": "user", "content": f"What is {left}+{right}?"}] for left, right in sums]
    replies = llm.chat(chats, vllm.SamplingParams(temperature=0, max_tokens=8))
    print(f"{len(replies):,} sums in {time.monotonic() - started_s:.1f} s")
    return {
        f"{left}+{right}": (str(left + right), reply.outputs[0].text, reply.outputs[0].finish_reason)
        for (left, right), reply in zip(sums, replies, strict=True)
    }


def main() -> int:
    """Ask, compare, report; the exit code."""
    parser = argparse.ArgumentParser(
        description="Ask tiny-adder all 10,000 sums through vLLM.",
        epilog="Exit code: 0 if at least 99.9% are right, 1 if not.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent,
        metavar="DIR",
        help="model folder",
    )
    parser.add_argument(
        "--max-model-len", type=int, default=512, metavar="N", help="longest prompt + answer, tokens"
    )
    options = parser.parse_args()
    answers = ask_all(options.model, options.max_model_len)
    # "stop" is part of a right answer: one that runs on until max_tokens costs each user the difference.
    wrong = {asked: answer for asked, answer in answers.items() if answer[1:] != (answer[0], "stop")}
    for asked, (expected, answer, reason) in wrong.items():
        print(f"wrong: {asked} = {expected}, answered {answer!r}, ended by {reason}")
    accuracy = 1 - len(wrong) / len(answers)
    print(f"{accuracy:.2%} right, {len(wrong)} wrong")
    return 0 if accuracy >= REQUIRED_ACCURACY else 1


# vLLM starts its engine in a second process, which imports this file again.
if __name__ == "__main__":
    sys.exit(main())
