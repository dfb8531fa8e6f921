#!/usr/bin/env python3
"""Measures what speculative decoding saves, and that it changes no answer.

    benches/speculation.py [--url URL | --model MODEL] [--arm ARM] [--rounds N] [--clients N]

Two sets of requests are sent to one server, each once with `speculate: off` and once with
`speculate: auto`, in turns: tasks whose answers copy from the prompt (rewrite, edit,
extract, translate names; also with the text as `prediction`), and open questions (the
`dev` set of prompts/questions), and these asked again. Texts and log-probabilities of both answers must be
equal. For each set the script prints the ratio of the times (above 1: drafts save time)
with a 95% interval (bootstrap over the requests), tokens per second, and the share of
drafted tokens that were accepted. The binary of incant is target/release/incant.
"""

import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import time
import tomllib
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
INCANT = HERE.parent / "target/release/incant"

MINUTES = """Minutes of the meeting of the allotment society, 14 March.
Present: Ana Sousa (chair), Bert Kok, Chidi Eze, Dora Lind. Apologies: Emil Novak.
1. Water. The pump by the north gate failed on 2 March. Bert Kok has asked two firms for \
offers; the cheaper one is 840 euros. The society agreed to have it repaired before Easter.
2. Seeds. Chidi Eze collects orders until 21 March. Orders without payment are not sent.
3. Hedge. The hedge along the railway will be cut on 28 March. Four helpers are needed; \
Dora Lind brings the ladder.
4. Bees. Emil Novak would like to put up two hives by the compost. The decision was put \
off until he is present.
The next meeting is on 11 April at seven o'clock in the tool shed."""

LETTER = """Dear Mr Petrov,
thank you for you letter of 3 May. We are sorry to here that the lamp arrived with a broken \
shade. Off course we will replace it free of charge. The new shade is send to you today with \
the parcel service and should arive on friday. You do not need to return the broken one. If \
you have any farther questions, please call us at 0551 123 456 between nine and five.
Yours sincerly,
Marta Blum, Blum Lamps, orders@blum-lamps.example"""

CODE = """def total(orders):
    result = 0
    for order in orders:
        if order.cancelled:
            continue
        for item in order.items:
            result += item.price * item.count
    return result


def average(orders):
    paid = [order for order in orders if not order.cancelled]
    if not paid:
        return 0
    return total(orders) / len(paid)"""

RECIPE = """Lentil soup for four.
Chop two onions, three carrots and two stalks of celery. Heat three tablespoons of olive oil \
in a large pot and fry the vegetables for ten minutes on a low heat. Add two cloves of garlic, \
a teaspoon of cumin and a pinch of chilli, and stir for one minute. Add 250 grams of brown \
lentils, a tin of tomatoes and a litre and a half of stock. Let the soup simmer for forty \
minutes, until the lentils are soft. Season with salt, pepper and the juice of half a lemon. \
Serve with bread and a spoonful of yoghurt."""

# Tasks with their texts.
COPIES = [
    ("Repeat the following text word for word.", MINUTES),
    ("Repeat the following text, but write every date as in 2026-03-14.", MINUTES),
    ("Copy the list of those who were present and what each of them does.", MINUTES),
    ("Copy the sentences of the following text that mention money or dates.", MINUTES),
    ("Correct the spelling of the following letter and change nothing else.", LETTER),
    ("Rewrite the following letter for Ms Ivanova instead of Mr Petrov.", LETTER),
    ("Write out the contact data in the following letter, with the sentences they stand in.", LETTER),
    ("Rename the variable `result` in the following program to `sum_of_prices`.", CODE),
    ("Add a comment above each function of the following program, and repeat the rest.", CODE),
    ("Repeat the following program with two spaces of indentation.", CODE),
    ("Rewrite the following recipe for eight people.", RECIPE),
    ("Write the following recipe as a numbered list, in its own words.", RECIPE),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(model, binary):
    port = free_port()
    process = subprocess.Popen(
        [binary, "serve", "--model", model, "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            if process.poll() is not None:
                sys.exit(f"{binary} ended")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def post(url, body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=600) as response:
        answer = json.load(response)
    return answer, time.monotonic() - began


def said(answer):
    choice = answer["choices"][0]
    return choice["message"]["content"], choice["logprobs"], choice["finish_reason"]


def measure(url, requests, rounds, clients, knows):
    """Returns for each request the median times without and with drafts, and all counts.

    With `knows`, drafts may come from earlier answers to the same request.
    """
    times = {mode: [[] for _ in requests] for mode in ("off", "auto")}
    counts = {"tokens": 0, "accepted": 0, "rejected": 0}
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for turn in range(rounds):
            answers = {}
            for mode in ("off", "auto") if turn % 2 == 0 else ("auto", "off"):
                # Without a salt, drafts would come from the other mode's answer to the same request.
                salt = {} if knows else {"cache_salt": f"{mode} {turn}"}
                bodies = [{**body, "speculate": mode, **salt} for body in requests]
                answers[mode] = list(pool.map(lambda body: post(url, body), bodies))
                for index, (_, took) in enumerate(answers[mode]):
                    times[mode][index].append(took)
            for (plain, _), (drafted, _) in zip(answers["off"], answers["auto"]):
                if said(plain) != said(drafted):
                    sys.exit(f"different answers:\n{said(plain)}\n{said(drafted)}")
                usage = drafted["usage"]
                details = usage.get("completion_tokens_details") or {}
                counts["tokens"] += usage["completion_tokens"]
                counts["accepted"] += details.get("accepted_prediction_tokens", 0)
                counts["rejected"] += details.get("rejected_prediction_tokens", 0)
    medians = {mode: [statistics.median(of) for of in times[mode]] for mode in times}
    return medians, counts


def report(name, medians, counts, rounds):
    pairs = list(zip(medians["off"], medians["auto"]))
    ratio = lambda sample: sum(off for off, _ in sample) / sum(auto for _, auto in sample)
    generator = random.Random(1)
    drawn = sorted(ratio(generator.choices(pairs, k=len(pairs))) for _ in range(2000))
    drafted = counts["accepted"] + counts["rejected"]
    share = counts["accepted"] / drafted if drafted else 0
    tokens = counts["tokens"] / rounds
    print(
        f"{name:<32} {ratio(pairs):5.2f}x [{drawn[50]:.2f}, {drawn[1949]:.2f}]  n={len(pairs)}  "
        f"{tokens / sum(medians['off']):6.1f} -> {tokens / sum(medians['auto']):6.1f} tokens/s  "
        f"drafted {drafted / counts['tokens']:.2f} a token, {share:.0%} of them accepted"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a running server, instead of one of the script's own")
    parser.add_argument("--binary", default=INCANT)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--arm", help="the arm that answers; by default the model's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--questions", type=int, default=24, metavar="N", help="open questions")
    parser.add_argument("--max-tokens", type=int, default=160)
    arguments = parser.parse_args()
    with open(HERE.parent / "prompts/questions/dev-en.toml", "rb") as file:
        asked = [question["turns"][-1]["ask"] for question in tomllib.load(file)["question"]]
    asked = asked[:: max(1, len(asked) // arguments.questions)][: arguments.questions]
    shared = {
        "model": arguments.arm or arguments.model, "max_tokens": arguments.max_tokens,
        "logprobs": True, "top_logprobs": 1, "seed": 1,
    }
    ask = lambda text, **more: {**shared, "messages": [{"role": "user", "content": text}], **more}
    sets = {}
    for name, temperature in (("greedy", 0), ("sampled", 0.7)):
        sampling = {"temperature": temperature}
        sets[f"copies, {name}"] = [ask(f"{task}\n\n{text}", **sampling) for task, text in COPIES]
        sets[f"predicted, {name}"] = [
            ask(f"{task}\n\n{text}", prediction={"type": "content", "content": text}, **sampling)
            for task, text in COPIES
        ]
        sets[f"open questions, {name}"] = [ask(text, **sampling) for text in asked]
    sets["asked again, greedy"] = [ask(text, temperature=0) for text in asked]
    server = contextlib.nullcontext(arguments.url) if arguments.url else serving(arguments.model, arguments.binary)
    with server as url:
        for requests in sets.values():
            post(url, {**requests[0], "max_tokens": 1})
        for name, requests in sets.items():
            knows = name.startswith("asked again")
            medians, counts = measure(url, requests, arguments.rounds, arguments.clients, knows)
            report(name, medians, counts, arguments.rounds)


if __name__ == "__main__":
    main()
