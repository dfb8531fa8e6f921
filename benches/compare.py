#!/usr/bin/env python3
"""Measures incant and llama.cpp side by side, and prints the ratios.

    benches/compare.py [--rounds N] [--peer FOLDER] [--threads N] MODEL.gguf...

Each round runs incant once and both of llama.cpp's builds once (built by peer.sh),
so that other load on the machine affects all of them alike. A ratio is the median
over the rounds of incant's rate over that of the better of the two builds in the
same round. The binary of incant is target/release/incant, which obeys INCANT_ISA.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Maps peer.sh's names of tests to the measurements of `incant bench`.
TESTS = {
    "pp512": ("prefill of 512", ("prefill", 1, 0, 512)),
    "tg64": ("decode, 1 sequence", ("decode", 1, 0, None)),
    "tg64@d1200": ("decode, 1 sequence after 1,200", ("decode", 1, 1200, None)),
    "tg64x8": ("decode, 8 sequences", ("decode", 8, 0, None)),
}


def incant(model, threads):
    command = [HERE.parent / "target/release/incant", "bench", "--json"]
    command += ["--model", model, "--threads", str(threads), "--repeat", "1"]
    command += ["--prefill", "512", "--batch", "1,8", "--depth", "0,1200"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    (report,) = json.loads(output)
    rates = {}
    for test, (_, (kind, batch, depth, tokens)) in TESTS.items():
        for row in report["results"]:
            fits = row["kind"] == kind and row["batch"] == batch and row["depth"] == depth
            if fits and tokens in (None, row["tokens"]):
                rates[test] = row["tokens_per_second"]
    return rates


def peer(model, threads, folder):
    command = [HERE / "peer.sh", "-r", "1", "-t", str(threads)]
    command += ["-o", folder] if folder else []
    command += ["measure", model]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    builds = {}
    for line in output.splitlines():
        result = json.loads(line)
        rates = builds.setdefault(result["build"], {})
        rates[result["test"]] = result["tokens_per_second"]
    return builds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", metavar="FOLDER", help="where peer.sh keeps its builds")
    arguments = parser.parse_args()
    for model in arguments.models:
        ours, theirs = [], []
        for round_ in range(1, arguments.rounds + 1):
            print(f"{model}: round {round_} of {arguments.rounds}", file=sys.stderr)
            ours.append(incant(model, arguments.threads))
            theirs.append(peer(model, arguments.threads, arguments.peer))
        print(f"\n{pathlib.Path(model).name}, {arguments.threads} threads, tokens/s")
        builds = sorted(theirs[0])
        print(f"  {'':32}{'incant':>10}" + "".join(f"{build:>18}" for build in builds) + f"{'ratio':>8}")
        for test, (name, _) in TESTS.items():
            best = [max(builds[build][test] for build in builds) for builds in theirs]
            ratio = statistics.median(mine[test] / peer for mine, peer in zip(ours, best))
            rates = [statistics.median(mine[test] for mine in ours)]
            rates += [statistics.median(their[build][test] for their in theirs) for build in builds]
            cells = f"{rates[0]:>10.1f}" + "".join(f"{rate:>18.1f}" for rate in rates[1:])
            print(f"  {name:32}{cells}{ratio:>7.2f}x", flush=True)


if __name__ == "__main__":
    main()
