#!/usr/bin/env python3
"""Trains on real preferences: SFT on the chosen answers, then DPO and SimPO from there.

    benches/preferences.py --data harmless-base-test.jsonl.gz --out FOLDER [--binary incant] [--model NAME] [--seed N]

The data is a file of hh-rlhf (https://github.com/anthropics/hh-rlhf). Of the pairs below 480 characters, 404 are held
out, by the seed; the rest is trained on for one epoch. Prints a table in Markdown. Runs that exist in FOLDER are not
repeated.
"""

import argparse
import gzip
import json
import pathlib
import random
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGEST, HELD_OUT = 480, 404
RUNS = [
    ("SFT, lr 2e-4", "sft", ["--learning-rate", "2e-4"]),
    ("DPO, lr 3e-5", "dpo", ["--learning-rate", "3e-5"]),
    ("DPO, lr 1e-4", "dpo", ["--learning-rate", "1e-4"]),
    ("SimPO, lr 3e-5", "simpo", ["--learning-rate", "3e-5"]),
]


def split(path, seed, folder):
    with gzip.open(path, "rt") as lines:
        pairs = [json.loads(line) for line in lines]
    pairs = [pair for pair in pairs if max(map(len, pair.values())) < LONGEST]
    random.Random(seed).shuffle(pairs)
    files = folder / "train.jsonl", folder / "held-out.jsonl"
    for file, part in zip(files, (pairs[HELD_OUT:], pairs[:HELD_OUT])):
        file.write_text("".join(json.dumps(pair) + "\n" for pair in part))
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--binary", default=ROOT / "target/release/incant")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, held_out = split(args.data, args.seed, args.out)
    print("| | held-out loss before | after | the chosen answer is ahead (95% interval) | minutes |")
    print("| --- | --- | --- | --- | --- |")
    for number, (title, loss, options) in enumerate(RUNS):
        out = args.out / f"{number}-{loss}"
        began = time.monotonic()
        if not (out / "adapter_config.json").exists():
            command = [args.binary, "train", loss, "--model", args.model, "--data", train, "--eval-data", held_out,
                       "--out", out, "--batch-size", "8", "--seed", str(args.seed), *options]  # fmt: skip
            command += ["--from", args.out / "0-sft"] if number else []
            subprocess.run(command, check=True, stdout=sys.stderr)
        minutes = (time.monotonic() - began) / 60
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        looks = [line for line in lines if line["kind"] == "evaluation"]
        before, after = looks[0], looks[-1]
        ahead = ""
        if "accuracy" in after:
            low, high = after["interval"]
            ahead = f"{after['accuracy']:.1%} ({low:.1%}–{high:.1%})"
            # Before DPO, no answer is ahead of the reference.
            ahead += f"; before {before['accuracy']:.1%}" if loss == "simpo" else ""
        print(f"| {title} | {before['loss']:.3f} | {after['loss']:.3f} | {ahead} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
