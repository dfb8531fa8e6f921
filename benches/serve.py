#!/usr/bin/env python3
"""Compares the serving speed of incant and llama.cpp on the same chats, and prints the ratios.

    benches/serve.py [--peer FOLDER] [OPTION...] MODEL.gguf...
    benches/serve.py --lengths 500,1000,2000,4000 [OPTION...] MODEL.gguf...

For each model and each of llama.cpp's builds (built by peer.sh), a fresh
`incant serve` and a fresh llama-server are started, and `incant bench --url` sends
both the same requests in turns: from clients that send one long prompt and a short
question each. Both are in memory then, but only one works at a time; the script
checks that the other one is idle. A ratio is relative to the better of the two
builds, and above 1 if incant is better. With --lengths, the same is done for shared
prompts of these lengths, and the table shows how the time of a request grows with
them. The binary of incant is target/release/incant.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
INCANT = HERE.parent / "target/release/incant"
# Tokens of the context for the question and for the error of the prompt's length.
SPARE = 200


def architecture(model):
    shown = subprocess.run([INCANT, "inspect", "--json", model], check=True, stdout=subprocess.PIPE)
    return json.loads(shown.stdout)["metadata"]["general.architecture"]["value"]


def free_port(wanted):
    """Returns the port `wanted`, or any if that is 0. A port in use is refused: its server would be measured."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", wanted))
        except OSError as error:
            sys.exit(f"port {wanted}: {error}")
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(command, port):
    """Yields the URL and the process of a server that has loaded its model."""
    port = free_port(port)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command + ["--port", str(port)], stdout=log, stderr=log)
        try:
            while not answers(f"{url}/health"):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command[0]} ended:\n{log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield url, process
        finally:
            process.terminate()
            process.wait()


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        # The server is not listening yet, or still loading.
        return False


def resident(process):
    """Returns the resident memory in megabytes."""
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000


def processor_time(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def warn_if_busy(processes):
    """Warns of an idle server that busy-waits: it would slow the other one down."""
    before = [processor_time(process) for process in processes]
    time.sleep(1)
    for process, start in zip(processes, before):
        if processor_time(process) - start > 0.05:
            print(f"{process.args[0]} is not idle without work", file=sys.stderr)


def measure(model, build, length, arguments):
    """Returns the report of `incant bench`, and both servers' memory."""
    tokens = arguments.parallel * (length + arguments.max_tokens + SPARE)
    ours = [str(INCANT), "serve", "--model", model, "--threads", str(arguments.threads)]
    ours += ["--parallel", str(arguments.parallel)]
    theirs = [str(build / "bin/llama-server"), "-m", model, "-t", str(arguments.threads)]
    theirs += ["--parallel", str(arguments.parallel), "-c", str(tokens)]
    if architecture(model).startswith("gemma3"):
        # Without these flags it cannot reuse a cached prompt with sliding-window attention.
        theirs += ["-fa", "on", "--swa-full"]
    ports = [arguments.port, arguments.port + 1] if arguments.port else [0, 0]
    with (
        serving(ours, ports[0]) as (our_url, our_process),
        serving(theirs, ports[1]) as (their_url, their_process),
    ):
        warn_if_busy([our_process, their_process])
        command = [INCANT, "bench", "--json", "--url", our_url, "--against", their_url]
        for option in ("clients", "requests", "max_tokens", "rounds"):
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
        command += ["--prompt-tokens", str(length)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        return json.loads(output), [resident(our_process), resident(their_process)]


def rows(report, memory):
    """Yields for each row: the name, incant's value, the peer's, the ratio and its extremes."""
    for figure in report["figures"]:
        name = f"{figure['phase']}, {figure['clients']}: {figure['figure']} ({figure['unit']})"
        ours, theirs = (server["median"] for server in figure["servers"])
        ratio = figure["ratio"]
        if ratio:
            yield name, ours, theirs, ratio["median"], ratio["min"], ratio["max"]
    ratio = memory[1] / memory[0]
    yield "memory after the load (MB)", *memory, ratio, ratio, ratio


def compare(model, builds, arguments):
    measured = {build.name: list(rows(*measure(model, build, arguments.prompt_tokens, arguments))) for build in builds}
    print(f"\n{pathlib.Path(model).name}, {arguments.threads} threads; a ratio above 1 means that incant is better")
    print(f"  {'':64}{'incant':>10}" + "".join(f"{name:>18}" for name in measured) + f"{'ratio':>8}  of the rounds")
    for builds_of_row in zip(*measured.values()):
        # The better build is the one with the smallest ratio.
        best = min(builds_of_row, key=lambda row: row[3])
        cells = f"{best[1]:>10.1f}" + "".join(f"{row[2]:>18.1f}" for row in builds_of_row)
        print(f"  {best[0]:64}{cells}{best[3]:>7.2f}x  {best[4]:.2f}–{best[5]:.2f}", flush=True)


def compare_lengths(model, builds, lengths, arguments):
    print(f"\n{pathlib.Path(model).name}, {arguments.threads} threads: seconds of a request by the shared prompt's length")
    shown = ["first", "together, cold", "alone", "together, warm"]
    print(f"  {'tokens':>8}  {'server':18}" + "".join(f"{name:>16}" for name in shown))
    for length in lengths:
        for build in builds:
            report, _ = measure(model, build, length, arguments)
            for name, server in zip(("incant", build.name), report["servers"]):
                # All rounds together; the time of concurrent clients is divided among them.
                phases = [phase for phases in server["rounds"] for phase in phases]
                cells = ""
                for of in shown:
                    those = [phase for phase in phases if phase["phase"] == of]
                    seconds = sum(phase["seconds"] for phase in those)
                    cells += f"{seconds / sum(phase['requests'] for phase in those):>16.3f}"
                print(f"  {server['shared_tokens'] or length:>8}  {name:18}{cells}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    parser.add_argument("--peer", metavar="FOLDER", type=pathlib.Path, default=pathlib.Path(cache) / "incant/peer",
                        help="where peer.sh keeps its builds")
    parser.add_argument("--lengths", metavar="TOKENS,...", help="lengths of the shared prompt to go through")
    parser.add_argument("--prompt-tokens", type=int, default=1100, metavar="N")
    parser.add_argument("--clients", default="8", metavar="N,...")
    parser.add_argument("--requests", type=int, default=4, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--parallel", type=int, default=8, metavar="N", help="answers that a server computes at once")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="serve on this one and the next, not on any that are free")
    arguments = parser.parse_args()
    # SIGTERM ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    builds = sorted(server.parent.parent for server in arguments.peer.glob("*/bin/llama-server"))
    if not builds:
        sys.exit(f"no build of llama-server is in {arguments.peer}: run peer.sh")
    for model in arguments.models:
        if arguments.lengths:
            compare_lengths(model, builds, [int(length) for length in arguments.lengths.split(",")], arguments)
        else:
            compare(model, builds, arguments)


if __name__ == "__main__":
    main()
