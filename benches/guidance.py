#!/usr/bin/env python3
"""Measures the cost of classifier-free guidance: chats with it, beside the same number of chats without it.

    benches/guidance.py [--model NAME] [--rounds N] [--tokens N] [--binary FILE] [--chats 1,8] [--weight W]

Starts a server of its own and lets this number of clients chat concurrently, with and without guidance, in turns:
pairs in one run, medians of the ratios of tokens per second. Answers have a fixed length and one profile whose prefix
is cached, so that both do the same work except for the guide.
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

QUESTIONS = ["Why is the sky blue?", "Name three birds.", "What is a lake?", "How do I peel an onion?",
             "Write a note to my sister.", "Who invented the telephone?", "Is coffee healthy?", "Tell me a joke."]  # fmt: skip


def ask(url, arm, question, tokens, weight):
    body = {"model": arm, "messages": [{"role": "user", "content": question}], "max_tokens": tokens,
            "ignore_eos": True, "temperature": 1, "seed": 1, "guidance": weight}  # fmt: skip
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["usage"]["completion_tokens"]


def rate(url, arm, chats, tokens, weight):
    """Returns the tokens per second of all chats together."""
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(chats) as pool:
        questions = [QUESTIONS[chat % len(QUESTIONS)] for chat in range(chats)]
        generated = sum(pool.map(lambda question: ask(url, arm, question, tokens, weight), questions))
    return generated / (time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--profile", help="a profile [default: the model's default one]")
    parser.add_argument("--chats", default="1,8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--binary", default=BINARY)
    args = parser.parse_args()
    arm = f"{args.model}@{args.profile}" if args.profile else args.model
    command = [args.binary, "serve", "--port", "0", "--model", args.model, "--no-prefix-cache"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stderr if "listening on http" in line)
        url = re.search(r"http://\S+", line).group()
        for chats in map(int, args.chats.split(",")):
            for weight in (0, args.weight):
                rate(url, arm, chats, 8, weight)
            pairs = [[rate(url, arm, chats, args.tokens, weight) for weight in (0, args.weight)]
                     for _ in range(args.rounds)]  # fmt: skip
            ratios = [guided / plain for plain, guided in pairs]
            print(f"{chats} chats: {statistics.median(p for p, _ in pairs):.0f} tokens/s, guided "
                  f"{statistics.median(g for _, g in pairs):.0f}: {statistics.median(ratios):.2f} "
                  f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    main()
