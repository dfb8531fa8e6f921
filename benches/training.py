#!/usr/bin/env python3
"""Measures the speed and memory of training an adapter, beside PEFT on PyTorch.

    benches/training.py --python VENV/bin/python [--rounds N] [--steps N] [--dtype bfloat16|float32] [--checkpointing]

VENV has torch, transformers and peft. Both train adapters of rank 16 on all linear layers of Gemma 3 270M (PyTorch
on random weights of its shape) on 2 threads, 4 sequences of 256 tokens a step, every position in the loss; in turns,
medians of the rounds.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/release/incant"
BATCH, LENGTH, RANK = 4, 256, 16


def pytorch(dtype, checkpointing, steps):
    """Runs in the other Python: prints tokens per second and peak bytes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
        max_position_embeddings=32768,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).to(getattr(torch, dtype))
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    tokens = torch.randint(0, 262144, (BATCH, LENGTH))
    times = []
    for _ in range(steps + 1):
        began = time.monotonic()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.monotonic() - began)
    # The first step allocates the buffers.
    rate = BATCH * LENGTH / statistics.median(times[1:])
    print(json.dumps({"rate": rate, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def incant(binary, model, steps):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # Ordinary prose, since the cost of the LM head depends on the text; each piece is long
        # enough to be truncated to 256 tokens.
        pages = [ROOT / name for name in ("ARCHITECTURE.md", "README.md", "CHANGELOG.md")]
        prose = "".join(page.read_text() for page in pages + sorted((ROOT / "docs").glob("*.md")))
        pieces = [prose[at : at + 1600] for at in range(0, 1600 * BATCH * (steps + 1), 1600)]
        assert len(pieces[-1]) == 1600, "there is no more prose"
        data = folder / "data.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in pieces))
        command = [binary, "train", "sft", "--model", model, "--data", data, "--out", folder / "out", "--threads", "2",
                   "--max-length", str(LENGTH), "--batch-size", str(BATCH), "--steps", str(steps + 1),
                   "--rank", str(RANK), "--eval-share", "0"]  # fmt: skip
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = wait(run)
        if status:
            sys.exit(f"incant train failed: {status}")
        lines = (folder / "out/metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        rates = [step["tokens_per_second"] for step in steps if "tokens_per_second" in step]
        return {"rate": statistics.median(rates[1:]), "peak": usage.ru_maxrss * 1024}


def wait(run):
    import os

    return os.wait4(run.pid, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="a Python with torch, transformers and peft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--binary", default=BINARY)
    parser.add_argument("--pytorch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pytorch:
        return pytorch(args.dtype, args.checkpointing, args.steps)
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(incant(args.binary, args.model, args.steps))
        command = [args.python, __file__, "--pytorch", "--dtype", args.dtype, "--steps", str(args.steps)]
        command += ["--checkpointing"] if args.checkpointing else []
        theirs.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    for name, found in [("incant", ours), (f"PEFT, {args.dtype}", theirs)]:
        rate, peak = (statistics.median(one[key] for one in found) for key in ("rate", "peak"))
        print(f"{name:16} {rate:7.1f} tokens/s  {peak / 1e9:5.2f} GB at most")
    ratios = [a["rate"] / b["rate"] for a, b in zip(ours, theirs)]
    memory = [a["peak"] / b["peak"] for a, b in zip(ours, theirs)]
    print(f"{statistics.median(ratios):.2f} times the speed, {statistics.median(memory):.2f} of the memory")


if __name__ == "__main__":
    main()
