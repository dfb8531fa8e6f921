#!/usr/bin/env python3
"""Measures the cost of analysis: three arms that score each other's tokens, beside the same three that only answer.

    benches/analysis.py [--model NAME] [--rounds N] [--tokens N] [--binary FILE] [--arms ID,ID,…]

Starts a server of its own and sends POST /v1/compare in turns with and without `analysis`: pairs in one run,
medians of the ratios. Answers have a fixed length, so that both do the same work.
"""

import argparse
import json
import pathlib
import re
import signal
import statistics
import subprocess
import time
import urllib.request

BINARY = pathlib.Path(__file__).resolve().parent.parent / "target/release/incant"


def seconds(url, arms, tokens, analysis):
    body = {"arms": arms, "messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": tokens,
            "ignore_eos": True, "analysis": analysis}  # fmt: skip
    request = urllib.request.Request(f"{url}/v1/compare", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    began = time.monotonic()
    with urllib.request.urlopen(request) as reply:
        answers = json.load(reply)["prompts"][0]["answers"]
    took = time.monotonic() - began
    return took, sum(answer["usage"]["completion_tokens"] for answer in answers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--arms", help="comma-separated [default: MODEL@base,MODEL@turn,MODEL@urial]")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--binary", default=BINARY)
    args = parser.parse_args()
    arms = args.arms.split(",") if args.arms else [f"{args.model}@{arm}" for arm in ("base", "turn", "urial")]
    command = [args.binary, "serve", "--port", "0", "--model", args.model, "--no-prefix-cache"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stderr if "listening on http" in line)
        url = re.search(r"http://\S+", line).group()
        for analysis in (False, True):
            seconds(url, arms, 8, analysis)
        pairs = []
        for _ in range(args.rounds):
            (plain, tokens), (analysed, same) = (seconds(url, arms, args.tokens, analysis) for analysis in (False, True))
            assert tokens == same, f"{tokens} and {same} tokens"
            pairs.append((plain, analysed))
        ratios = [analysed / plain for plain, analysed in pairs]
        print(f"{len(arms)} arms, {tokens} tokens: {statistics.median(p for p, _ in pairs):.2f} s, with analysis "
              f"{statistics.median(a for _, a in pairs):.2f} s: {statistics.median(ratios):.2f} times "
              f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    main()
