#!/usr/bin/env python3
"""Measures the cost of eight adapters: eight concurrent answers, each with its own adapter, beside eight of the base.

    benches/adapters.py ADAPTER [--model NAME] [--rounds N] [--tokens N] [--binary FILE]

Starts a server of its own with the adapter loaded eight times under eight names, which share
nothing, and measures both in turns: pairs in one run, medians of the ratios.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import signal
import statistics
import subprocess
import time
import urllib.request

BINARY = pathlib.Path(__file__).resolve().parent.parent / "target/release/incant"
ROWS = 8


def answer(url, arm, index, tokens):
    body = {"model": arm, "prompt": f"Story number {index}: once upon a time", "max_tokens": tokens,
            "temperature": 0, "ignore_eos": True}  # fmt: skip
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["usage"]["completion_tokens"]


def tokens_per_second(url, arms, tokens):
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(ROWS) as pool:
        made = sum(pool.map(lambda pair: answer(url, pair[1], pair[0], tokens), enumerate(arms)))
    return made / (time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--binary", default=BINARY)
    args = parser.parse_args()
    names = [f"a{index}" for index in range(ROWS)]
    command = [args.binary, "serve", "--port", "0", "--model", args.model, "--no-prefix-cache"]
    for name in names:
        command += ["--adapter", f"{name}={args.adapter}"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stderr if "listening on http" in line)
        url = re.search(r"http://\S+", line).group()
        base, adapted = [args.model] * ROWS, [f"{args.model}+{name}" for name in names]
        arms = {"base": base, "8 adapters": adapted, "1 adapter": [adapted[0]] * ROWS}
        for those in arms.values():
            tokens_per_second(url, those, 8)
        speeds = {name: [] for name in arms}
        for _ in range(args.rounds):
            for name, those in arms.items():
                speeds[name].append(tokens_per_second(url, those, args.tokens))
        for name, measured in speeds.items():
            ratios = [a / b for a, b in zip(measured, speeds["base"])]
            print(f"{name:12} {statistics.median(measured):7.1f} tokens/s  {statistics.median(ratios):.2f} of the base "
                  f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    main()
