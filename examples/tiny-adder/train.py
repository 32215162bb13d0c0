"""Train tiny-adder: a Qwen2 of 0.67 M parameters that answers "What is 17+25?" with "42".

It promises a folder that vLLM serves as it is (weights in bfloat16, config, byte tokenizer, chat template),
scored on all 10,000 sums of two numbers from 0 to 99 before it is written: training ends early once all are
right, and with exit code 1 and the folder left alone if the steps or the minutes run out below 99.9%. It is
seeded, but other threads, machines and versions of torch give other bits. Serving is left to `evaluate.py`.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

# torch and transformers take seconds to import, which --help should not cost. transformers leaves some
# functions untyped, hence the ignores.
if TYPE_CHECKING:
    import torch
    import transformers

OPERANDS = 100
REQUIRED_ACCURACY = 0.999
# vLLM computes in bfloat16 and adds in another order for each batch size, so a sum that is right by a hair
# here can be wrong there: training goes on until each token leads the runner-up by this much, in logits.
REQUIRED_MARGIN = 1.0
WARM_UP_STEPS = 100

IGNORED_LABEL = -100
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# ChatML, as Qwen2 has it. It takes any role and raises on nothing: whoever tests batchd with odd messages
# should see what batchd does with them, not what a template does. There is no default system message, since
# the model learns from the bare question.
CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + (message.role | default('user', true) | string) + '\\n' }}
{{- message.content | default('', true) | string }}
{%- if message.tool_calls %}
{{- message.tool_calls | tojson }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


class Sums(NamedTuple):
    """Every sum as the model sees it, one row each, in the order 0+0, 0+1, ..., 99+99.

    Attributes:
        token_ids: (10000, length) int64, prompt and answer without its last token, padded on the right.
        labels: (10000, length) int64, the token that follows each answer position, IGNORED_LABEL elsewhere.
    """

    token_ids: "torch.Tensor"
    labels: "torch.Tensor"


class Score(NamedTuple):
    """What the bfloat16 model makes of all sums.

    Attributes:
        wrong: the rows of Sums that greedy decoding gets wrong.
        margin: the least lead in logits of a right token over its runner-up; negative if any is wrong.
    """

    wrong: list[int]
    margin: float

    @property
    def accuracy(self) -> float:
        """The share of sums that are right, from 0 to 1."""
        return 1 - len(self.wrong) / OPERANDS**2

    @property
    def is_finished(self) -> bool:
        """Whether more training would add nothing that vLLM could show."""
        return not self.wrong and self.margin >= REQUIRED_MARGIN


def build_tokenizer(max_length: int) -> "transformers.Qwen2Tokenizer":
    """Make the tokenizer: one token for each byte of UTF-8, so one for each ASCII character.

    It is Qwen2's own class with an empty list of merges. Any other would not survive: transformers 5 gives
    each "qwen2" model this class and its way of splitting, whatever tokenizer_config.json names. A tokenizer
    that split by characters lost spaces and newlines on loading, and of the sums 1% came out right (2026-11,
    transformers 5.19).
    """
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [END_OF_TEXT, TURN_START, TURN_END, *alphabet]
    return transformers.Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
    )


def build_model(tokenizer: "transformers.Qwen2Tokenizer") -> "transformers.Qwen2ForCausalLM":
    """Make the untrained model, in float32.

    Heads of 64 are a size that the attention kernels for CPU and for GPU both have.
    """
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    model = transformers.Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    model.generation_config = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def build_sums(tokenizer: "transformers.Qwen2Tokenizer") -> Sums:
    """Write out all sums through the chat template, the way that a server will."""
    import torch

    rows: list[list[int]] = []
    answers: list[list[int]] = []
    for left in range(OPERANDS):
        for right in range(OPERANDS):
            question = [{"role": "user", "content": f"What is {left}+{right}?"}]
            prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
            rows.append(tokenizer.encode(prompt))
            answers.append(tokenizer.encode(f"{left + right}{TURN_END}"))
    length = max(len(row) + len(answer) for row, answer in zip(rows, answers, strict=True)) - 1
    token_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), IGNORED_LABEL)
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        token_ids[index, : len(row) + len(answer) - 1] = torch.tensor(row + answer[:-1])
        labels[index, len(row) - 1 : len(row) + len(answer) - 1] = torch.tensor(answer)
    return Sums(token_ids, labels)


def answer_logits(
    model: "transformers.Qwen2ForCausalLM", token_ids: "torch.Tensor", labels: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Run the model and keep the answer positions only: (answers, vocabulary) logits, (answers,) labels.

    Padding stands on the right, where causal attention never looks, so no mask is needed. What the rows begin
    with in common ("What is ") is computed once for all of them, which saves 40% of the time.
    """
    import transformers

    is_same = (token_ids == token_ids[0]).all(dim=0)
    shared = int(is_same.cumprod(dim=0).sum())
    cache = transformers.DynamicCache(config=model.config)
    model.model(input_ids=token_ids[:1, :shared], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(token_ids))
    outputs = model.model(input_ids=token_ids[:, shared:], past_key_values=cache, use_cache=True)
    labels = labels[:, shared:]
    is_answer = labels != IGNORED_LABEL
    return model.lm_head(outputs.last_hidden_state[is_answer]), labels[is_answer]


def round_weights(model: "transformers.Qwen2ForCausalLM") -> "transformers.Qwen2ForCausalLM":
    """Copy the model to bfloat16, the way that a server has it after loading.

    `model.bfloat16()` would not do: it rounds the rotary frequencies too, which no file holds and each server
    computes in float32, so that the copy would turn its positions by other angles than the server.
    """
    import copy

    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16()
    rounded.config.dtype = "bfloat16"
    return rounded


def score(model: "transformers.Qwen2ForCausalLM", sums: Sums) -> Score:
    """Measure a bfloat16 copy of the model on all sums.

    One pass that is given the right answers tells what greedy decoding would write: the sum is right exactly
    if each of its tokens is the likeliest one after the right tokens before it.
    """
    import torch

    rounded = round_weights(model)
    margins = torch.full(sums.labels.shape, float("inf"))
    with torch.inference_mode():
        for start in range(0, len(sums.labels), 1000):
            rows = slice(start, start + 1000)
            logits, labels = answer_logits(rounded, sums.token_ids[rows], sums.labels[rows])
            right = logits.float().gather(1, labels[:, None])
            others = logits.float().scatter(1, labels[:, None], float("-inf"))
            margins[rows][sums.labels[rows] != IGNORED_LABEL] = right[:, 0] - others.max(1).values
    least = margins.min(1).values
    return Score(wrong=torch.nonzero(least <= 0)[:, 0].tolist(), margin=least.min().item())


def train(model: "transformers.Qwen2ForCausalLM", sums: Sums, options: argparse.Namespace) -> Score:
    """Train the model in place until it is finished, or the steps or the minutes run out.

    Returns:
        The score of the model as it is left.
    """
    import torch

    started_s = time.monotonic()
    limit_s = options.max_minutes * 60
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    order = torch.randperm(OPERANDS**2)
    used = 0
    latest = Score(wrong=list(range(OPERANDS**2)), margin=float("-inf"))
    for step in range(1, options.max_steps + 1):
        if used + options.batch_size > len(order):
            order, used = torch.randperm(OPERANDS**2), 0
        rows = order[used : used + options.batch_size]
        used += options.batch_size
        # At a steady 2e-3 the accuracy wanders between 96% and 99% (2026-11, 2 cores): the last sums stay
        # right at a low rate only. It falls with the steps, or with the minutes where the machine is slow.
        done = max(step / options.max_steps, (time.monotonic() - started_s) / limit_s)
        optimizer.param_groups[0]["lr"] = options.lr * min(1.0, step / WARM_UP_STEPS) * max(0.01, 1 - done)
        logits, labels = answer_logits(model, sums.token_ids[rows], sums.labels[rows])
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        is_late = time.monotonic() - started_s > limit_s
        if step % options.score_every == 0 or is_late or step == options.max_steps:
            latest = score(model, sums)
            print(
                f"step {step:5d}  {time.monotonic() - started_s:5.0f} s  loss {loss.item():.5f}"
                f"  right {latest.accuracy:.2%}  margin {latest.margin:6.2f}",
                flush=True,
            )
            if latest.is_finished or is_late:
                break
    return latest


def save(
    model: "transformers.Qwen2ForCausalLM",
    tokenizer: "transformers.Qwen2Tokenizer",
    out: pathlib.Path,
) -> None:
    """Write the model folder: each file whole, the weights last."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        # A template in a file of its own is newer than some servers; inside the config all of them find it.
        tokenizer.save_pretrained(scratch, save_jinja_files=False)
        round_weights(model).save_pretrained(scratch)
        written = sorted(pathlib.Path(scratch).iterdir(), key=lambda path: path.suffix == ".safetensors")
        for path in written:
            path.chmod(0o644)
            path.replace(out / path.name)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Train tiny-adder, a Qwen2 model of 1.4 MB that answers "What is 17+25?" with "42".',
        epilog="Exit code: 0 if the model was saved, 1 if it stayed below 99.9% right: nothing written.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent,
        metavar="DIR",
        help="model folder to write",
    )
    parser.add_argument(
        "--max-minutes", type=float, default=14.0, metavar="N", help="stop training after this long"
    )
    parser.add_argument(
        "--max-steps",
        type=int,
        default=1200,
        metavar="N",
        help="steps in which the learning rate falls to nothing",
    )
    parser.add_argument("--score-every", type=int, default=100, metavar="N", help="steps between two scores")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="sums in a step")
    parser.add_argument("--lr", type=float, default=2e-3, metavar="X", help="highest learning rate")
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="CPU threads; changes the result's bits"
    )
    parser.add_argument("--seed", type=int, default=17, metavar="N", help="seed of weights and order")
    return parser.parse_args(arguments)


def main() -> int:
    """Train, judge, save; the exit code."""
    options = parse_arguments()
    import torch

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer(max_length=2048)
    model = build_model(tokenizer)
    sums = build_sums(tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{parameters:,} parameters, {len(sums.labels):,} sums of {sums.token_ids.shape[1]} tokens",
        flush=True,
    )
    result = train(model, sums, options)
    for row in result.wrong[:20]:
        print(f"wrong: {row // OPERANDS}+{row % OPERANDS}")
    if result.accuracy < REQUIRED_ACCURACY:
        print(
            f"{result.accuracy:.2%} right is below {REQUIRED_ACCURACY:.1%}: nothing written", file=sys.stderr
        )
        return 1
    save(model, tokenizer, options.out)
    print(json.dumps({"out": str(options.out), "right": result.accuracy, "margin": result.margin}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
