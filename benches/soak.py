#!/usr/bin/env python3
"""Soak, overload and kill tests of a server, which report its faults.

    benches/soak.py soak [--minutes M]     mixed load, junk and half-open connections, then SIGTERM
    benches/soak.py overload [--factor N]  N times as many clients as there are slots
    benches/soak.py kill [--rounds N]      kill -9 while prefixes are computed and written

Each starts servers of its own (target/release/incant, or --binary) with a prefix
folder of their own, which obey INCANT_MODELS and the like. The exit status is 1 if
there was any fault.

soak checks that every request has the outcome of its kind, and that some greedy ones have the same answer
as on the idle server; meanwhile /health must answer within half a second at all times, and memory must not
grow in the second half. overload compares the tokens per second of complete answers (goodput). kill checks
that each restart gives the same answers and leaves no files behind.
"""

import argparse
import collections
import contextlib
import http.client
import json
import multiprocessing
import os
import pathlib
import random
import re
import resource
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time

from served import Reply, Server, post, read, events, say, user, wait_for

BINARY = pathlib.Path(__file__).resolve().parent.parent / "target/release/incant"
MODELS = ["gemma-3-270m", "smollm2-135m-instruct"]
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
ARMS = {CHAT: ["", "@urial", "@turn", "@base", "@urial-ja"], COMPLETE: ["", "@urial", "@urial-ja"]}
QUESTIONS = ["What makes the sky blue?", "How do I boil an egg?", "Name three uses for a brick.",
             "日本で一番高い山は何ですか。", "Translate to French: The cat sleeps 🐈 on the roof."]  # fmt: skip
DOCUMENTS = [" ".join(f"House {n} has a {what} that is {n * 7 % 31} years old." for n in range(40)) + "\nHouse"
             for what in ("door", "roof", "gate", "lamp")]  # fmt: skip
LONG = "long " * 9000
# Request bodies as bytes, large or malformed, with the correct outcomes.
SMALL = {"model": MODELS[0], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
JUNK = [
    (lambda: json.dumps(SMALL | {"junk": [[0]] * 1_000_000}), "200"),
    (lambda: json.dumps({"junk": {str(n): {} for n in range(300_000)}} | SMALL), "200"),
    (lambda: json.dumps(SMALL | {"messages": [{"role": "user", "content": "word " * 1_400_000}]}),
     "400 context_length_exceeded"),
    (lambda: json.dumps(SMALL | {"messages": [{"role": "user", "content": "\u00e9" * 1_000_000}]}),
     "400 context_length_exceeded"),
    (lambda: json.dumps(SMALL)[:-1] + ', "deep": ' + "[" * 100_000, "400"),
    (lambda: "\x00\x7f" * 500_000, "400"),
    (lambda: "[" + "1," * 2_000_000, "400"),
    (lambda: " " * (9 << 20), "413"),
]  # fmt: skip
# Kinds of requests: frequency, path, bodies, and the correct outcomes.
MIX = {
    "chat": (20, CHAT, [{}], "200"),
    "conversation": (14, CHAT, [{}], "200"),
    "shared prompt": (12, COMPLETE, [{"prompt": text} for text in DOCUMENTS], "200"),
    "long answers": (2, COMPLETE, [{"prompt": "Once", "n": 3, "max_tokens": 300, "ignore_eos": True}], "200"),
    "several": (6, CHAT, [{"n": 2}, {"n": 4}], "200"),
    "crowd": (1, CHAT, [{"n": 32, "max_tokens": 3}], "200"),
    "scoring": (5, COMPLETE, [{"prompt": [text[:600], "Rain falls."], "echo": True, "logprobs": 2, "max_tokens": 0}
                              for text in DOCUMENTS], "200"),
    "controlled": (8, CHAT, [{"logit_bias": {"100": -100, "200": 5.5}, "seed": 7},
                             {"logprobs": True, "top_logprobs": 5},
                             {"stop": ["\n", "the"], "top_p": 0.8, "top_k": 40, "min_p": 0.01},
                             {"presence_penalty": 1, "frequency_penalty": -0.5, "repetition_penalty": 1.2}], "200"),
    "leaves early": (6, CHAT, [{}, {"messages": [{"role": "user", "content": DOCUMENTS[0]}]}], "left"),
    "leaves a stream": (6, CHAT, [{"stream": True, "max_tokens": 200, "ignore_eos": True, "n": 2}], "left"),
    "hurried": (4, CHAT, [{"timeout": 0.05}, {"timeout": 2}], "200|408 request_timeout|200, then request_timeout"),
    "too long": (2, CHAT, [{"messages": [{"role": "user", "content": LONG}]}], "400 context_length_exceeded"),
    "too long prompt": (2, COMPLETE, [{"prompt": LONG}], "400 context_length_exceeded"),
    "junk": (4, CHAT, [{}], "200|400|413"),
    "unknown model": (2, CHAT, [{"model": "nobody"}, {"model": MODELS[0] + "@nobody"}], "404 model_not_found"),
    "bad field": (4, CHAT, [{"temperature": 3}, {"max_tokens": -1}, {"messages": "hello"}, {"messages": []}, {"n": 0},
                            {"n": 100}, {"top_p": "high"}, {"stop": [""]}, {"timeout": 0}, {"logit_bias": {"-1": 2}},
                            {"tools": [{"type": "function", "function": {"name": "f"}}]}], "400"),
}  # fmt: skip


class Tally:
    """The outcomes and faults that all threads have seen."""

    def __init__(self):
        self.lock = threading.Lock()
        self.seen = collections.defaultdict(collections.Counter)
        self.tokens = self.wrong = 0

    def note(self, kind, reply):
        with self.lock:
            self.seen[kind][reply.outcome] += 1
            self.tokens += reply.tokens

    def demand(self, condition, what):
        if not condition:
            with self.lock:
                self.wrong += 1
                say(f"WRONG: {what}")

    def report(self):
        for kind, outcomes in sorted(self.seen.items()):
            print(f"  {kind:18}" + ", ".join(f"{outcome}: {count}" for outcome, count in sorted(outcomes.items())))
        print(f"{self.wrong} wrong")


class Client(threading.Thread):
    """Sends one request after the other."""

    def __init__(self, number, server, options, probes, tally, ending):
        super().__init__(daemon=True)
        self.random = random.Random(number)
        self.server, self.models, self.probes, self.tally, self.ending = server, options.model, probes, tally, ending
        self.talk, self.arm = [], None
        self.connection = server.connect()

    def run(self):
        while not self.ending.is_set():
            if self.random.random() < 0.08:
                path, body, text = self.random.choice(self.probes)
                body = body | {"stream": self.random.random() < 0.5}
                reply = self.ask("probe", path, body, "200")
                same = reply.outcome != "200" or reply.texts[0] == text
                self.tally.demand(same, f"{path} {body} gave {text!r} when alone, now {reply.texts.get(0)!r}")
                continue
            (kind,) = self.random.choices(list(MIX), [weight for weight, *_ in MIX.values()])
            _, path, bodies, expected = MIX[kind]
            body = self.common(path) | self.random.choice(bodies)
            if kind == "conversation":
                self.converse(body)
            elif expected == "left":
                self.ask(kind, path, body, expected, self.leave)
            elif kind == "junk":
                self.throw()
            else:
                self.ask(kind, path, body, expected)

    def common(self, path):
        chance = self.random
        body = {"model": chance.choice(self.models) + chance.choice(ARMS[path]), "stream": chance.random() < 0.5}
        body |= {"max_tokens": chance.randint(4, 40), "temperature": chance.choice([0, 0.7, 1.3])}
        return body | ({"messages": user(chance.choice(QUESTIONS))} if path == CHAT else {})

    def converse(self, body):
        """Sends the next turn of the conversation, or the first one of a new conversation."""
        if len(self.talk) > 10 or not self.talk:
            self.talk, self.arm = [], body["model"]
        body |= {"model": self.arm, "messages": self.talk + body["messages"]}
        reply = self.ask("conversation", CHAT, body, "200")
        if reply.outcome == "200":
            self.talk = [*body["messages"], {"role": "assistant", "content": reply.texts[0]}]

    def ask(self, kind, path, body, expected, attempt=None):
        """Sends a request until the queue has a place, and checks the outcome."""
        while True:
            try:
                reply = (attempt or self.attempt)(path, body)
            except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
                self.connection.close()
                self.ending.wait(1)
                reply = Reply(f"failed: {error!r}")
            self.tally.note(kind, reply)
            # Concurrent clients may use up all connections, and junk the memory for bodies.
            if not reply.outcome.startswith(("429 ", "503")):
                break
            retry_after = f"{reply.outcome} with Retry-After {reply.retry_after}"
            self.tally.demand((reply.retry_after or "").isdigit(), retry_after)
            if self.ending.wait(float(reply.retry_after or 1)):
                return reply
        told = json.dumps(body, ensure_ascii=False)[:700]
        why = f"{kind}: {reply.outcome} for {path} {told}: {str((reply.body or [''])[-1])[:300]}"
        self.tally.demand(reply.outcome in expected.split("|"), why)
        if reply.outcome == "200":
            answers = body.get("n", 1) * (len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1)
            self.tally.demand(len(reply.texts) == answers, f"{len(reply.texts)} answers for {path} {told}")
        return reply

    def throw(self):
        """Sends a body of junk, without keeping it in memory."""
        make, expected = self.random.choice(JUNK)

        def attempt(path, _):
            with contextlib.closing(self.server.connect()) as connection:
                # A client that is refused early may find the connection closed while it sends.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request("POST", path, make().encode(), {"Content-Type": "application/json"})
                return read(connection.getresponse())

        self.ask("junk", CHAT, {}, expected, attempt)

    def attempt(self, path, body):
        return read(post(self.connection, path, body))

    def leave(self, path, body):
        """Closes the connection without reading, or after some events."""
        with contextlib.closing(self.server.connect()) as connection:
            if not body.get("ignore_eos"):
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                time.sleep(self.random.choice([0, 0.02, 0.3]))
                return Reply("left")
            with post(connection, path, body) as response:
                if response.status != 200:
                    return read(response)
                for _ in zip(range(self.random.randint(1, 20)), events(response)):
                    pass
            return Reply("left")


def crowd(port, ending):
    """Opens and closes half-open connections, below and above the server's connection limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))
    chance = random.Random(1)
    while not ending.wait(chance.uniform(5, 15)):
        held = []
        for _ in range(chance.choice([100, 400, 1500])):
            connection = socket.socket()
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                connection.connect(("127.0.0.1", port))
                connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"[: chance.randrange(60)])
            held.append(connection)
        ending.wait(chance.uniform(2, 8))
        for connection in held:
            connection.close()


def watch_health(port, ending, worst, failures):
    """Checks the server's health ten times a second, over a new connection each time."""
    while not ending.wait(0.1):
        began, status = time.monotonic(), None
        with contextlib.suppress(OSError, http.client.HTTPException):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                connection.request("GET", "/health")
                status = connection.getresponse().status
        worst.value = max(worst.value, time.monotonic() - began)
        failures.value += status != 200


def probe(server, models, tally):
    """Returns greedy requests with their answers."""
    bodies = [(CHAT, {"model": model + arm, "messages": user(QUESTIONS[0])}) for model in models for arm in ARMS[CHAT]]
    bodies += [(COMPLETE, {"model": model, "prompt": DOCUMENTS[0]}) for model in models]
    probes = []
    for path, body in bodies:
        body |= {"temperature": 0, "max_tokens": 24}
        reply = server.ask(path, body)
        tally.demand(reply.outcome == "200", f"{reply.outcome} for {path} {body} on an idle server: {reply.body[-1]}")
        probes.append((path, body, reply.texts[0]))
    return probes


def sample(server, tally):
    """Prints a line; returns the resident memory in MiB."""
    tally.demand(server.healthy(), "the server is not healthy")
    metrics, resident = server.metrics(), server.memory()
    used, room = metrics["kv_used_bytes"] / 2**20, metrics["kv_capacity_bytes"] / 2**20
    say(f"{resident:.0f} MiB resident ({server.memory('RssAnon'):.0f} anonymous), KV {used:.0f} of {room:.0f} MiB, "
        f"{metrics['running_sequences']:.0f} running, {metrics['waiting_sequences']:.0f} waiting, "
        f"{metrics['preemptions_total']:.0f} preemptions, {metrics['finished']:.0f} finished")  # fmt: skip
    tally.demand(used <= room, "more KV is used than there is")
    return resident


def soak(options, folder, tally):
    more = ["--kv-memory", options.kv_memory, "--context", "4096", "--parallel", "8", "--queue", "64"]
    with Server(options, folder, *more) as server:
        tally.demand(wait_for(server.healthy, 120, 0.2), "the server does not become healthy")
        probes, ending = probe(server, options.model, tally), multiprocessing.Event()
        worst, failures = multiprocessing.Value("d", 0), multiprocessing.Value("i", 0)
        others = [multiprocessing.Process(target=crowd, args=[server.port, ending], daemon=True),
                  multiprocessing.Process(target=watch_health, args=[server.port, ending, worst, failures],
                                          daemon=True)]  # fmt: skip
        for other in others:
            other.start()
        clients = [Client(n, server, options, probes, tally, ending) for n in range(options.clients)]
        began, samples = time.monotonic(), []
        for client in clients:
            client.start()
        while (since := time.monotonic() - began) < options.minutes * 60:
            samples.append((since, sample(server, tally)))
            time.sleep(min(10, max(0.1, options.minutes * 60 - since)))
        ending.set()
        for client in clients:
            client.join(300)
        for other in others:
            other.join(30)
        print(f"/health took {worst.value:.3f} s at the longest, and failed {failures.value} times")
        tally.demand(worst.value <= 0.5 and failures.value == 0, "the server's health was late or bad")
        tally.demand(not any(client.is_alive() for client in clients), "a client waits for its answer")
        tally.demand(wait_for(server.idle, 10), "sequences run or wait though all clients have left")
        samples.append((time.monotonic() - began, sample(server, tally)))
        for (path, body, before), (_, _, now) in zip(probes, probe(server, options.model, tally)):
            tally.demand(now == before, f"{path} {body} gave {before!r} at first, at last {now!r}")
        ended = samples[-1][0]
        half, last = (statistics.median(resident for since, resident in samples if low <= since / ended <= high)
                      for low, high in ((0.5, 0.6), (0.9, 1)))  # fmt: skip
        print(f"resident in the tenth after half of the time {half:.0f} MiB, in the last tenth {last:.0f} MiB: "
              f"{last / half - 1:+.1%} (medians)")  # fmt: skip
        tally.demand(last <= half * (1 + options.growth / 100), "resident memory grows")
        tally.demand(server.metrics()["failed"] == 0, "the server counts failed requests")
        drain(server, options, tally)
        for line in server.logged("ERROR|panicked"):
            tally.demand(False, line)
        warnings = [re.sub(r"request\{.*?\}|\d+", "…", line[27:]) for line in server.logged(" WARN ")]
        print("".join(f"  {count} x {line}\n" for line, count in collections.Counter(warnings).items()), end="")


def drain(server, options, tally):
    """Checks that SIGTERM lets running answers end, and refuses new connections (graceful shutdown)."""
    connections = [server.connect() for _ in range(4)]
    bodies = [{"model": options.model[n % len(options.model)], "prompt": QUESTIONS[n], "max_tokens": 300,
               "ignore_eos": True, "stream": True} for n in range(4)]  # fmt: skip
    responses = [post(connection, COMPLETE, body) for connection, body in zip(connections, bodies)]
    tally.demand(server.metrics()["running_sequences"] == 4, "there are no 4 answers to drain")
    reader = threading.Thread(target=lambda: [tally.note("drained", read(response)) for response in responses])
    reader.start()
    server.process.send_signal(signal.SIGTERM)

    def refused():
        try:
            socket.create_connection(("127.0.0.1", server.port)).close()
        except ConnectionRefusedError:
            return True

    tally.demand(wait_for(refused, 2), "connections are accepted after SIGTERM")
    tally.demand(server.process.poll() is None, "the server did not wait for its answers")
    reader.join(60)
    tally.demand(tally.seen["drained"] == {"200": 4}, f"answers at SIGTERM: {dict(tally.seen['drained'])}")
    tally.demand((code := server.terminate()) == 0, f"exit code {code}")


def goodput(server, clients, options, tally, kind):
    """Returns the tokens per second of complete answers with this number of clients."""
    ending = threading.Event()

    def ask_on(number):
        chance, connection = random.Random(number), server.connect()
        while not ending.is_set():
            body = {"model": options.model[0], "prompt": f"{chance.random()} {chance.choice(QUESTIONS)}",
                    "max_tokens": chance.randint(16, 64), "ignore_eos": True}  # fmt: skip
            reply = read(post(connection, COMPLETE, body))
            tally.note(kind, reply)
            tally.demand(reply.outcome in ("200", "429 queue_full"), reply)
            if reply.outcome != "200":
                tally.demand((reply.retry_after or "").isdigit(), f"429 with Retry-After {reply.retry_after}")
                time.sleep(options.pause)
        connection.close()

    threads = [threading.Thread(target=ask_on, args=[number], daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(options.warm_up)
    began, before = time.monotonic(), tally.tokens
    time.sleep(options.seconds)
    rate = (tally.tokens - before) / (time.monotonic() - began)
    ending.set()
    for thread in threads:
        thread.join()
    return rate


def overload(options, folder, tally):
    with Server(options, folder, "--parallel", "8", "--queue", "16") as server:
        tally.demand(wait_for(server.healthy, 120, 0.2), "the server does not become healthy")
        os.nice(5)  # this process, not the server: clients run elsewhere
        pairs = []
        for _ in range(options.pairs):
            peak = goodput(server, 8, options, tally, "peak")
            over = goodput(server, 8 * options.factor, options, tally, "overload")
            pairs.append((peak, over))
            say(f"{peak:.1f} tokens/s with 8 clients, {over:.1f} with {8 * options.factor}: {over / peak:.2f}x")
        tally.demand(wait_for(server.idle, 10), "sequences run or wait though all clients have left")
    seen = tally.seen["overload"]
    ratio = statistics.median(over / peak for peak, over in pairs)
    peak, over = (statistics.median(rates) for rates in zip(*pairs))
    print(f"medians: {peak:.1f} and {over:.1f} tokens/s, {ratio:.2f}x; "
          f"{seen['429 queue_full'] / seen.total():.1%} of the requests under overload were refused")  # fmt: skip
    tally.demand(ratio >= 0.9, "overload costs goodput")


def kill(options, folder, tally):
    chance, prefixes = random.Random(0), pathlib.Path(folder, "prefixes")
    bodies = [{"model": options.model[0] + arm, "messages": user(QUESTIONS[0]), "temperature": 0, "max_tokens": 16}
              for arm in ("@urial", "@urial-ja")]  # fmt: skip

    def unfinished():
        return {*prefixes.glob(".saving-*")}

    first = start(options, folder, bodies, tally)
    for number in range(options.rounds):
        for file in prefixes.glob("*.safetensors"):
            file.unlink()
        with Server(options, folder) as server:
            if number % 2 and wait_for(server.healthy, 120, 0.2):  # the second prefix, else the first
                connection = server.connect()
                connection.request("POST", CHAT, json.dumps(bodies[1]), {"Content-Type": "application/json"})
            known = unfinished()
            writing = number % 3 != 2 and wait_for(lambda: unfinished() - known, 20, 0.0005)
            time.sleep(chance.uniform(0, 0.02 if writing else 2))
        left = unfinished()
        whole = len([*prefixes.glob("*.safetensors")])
        tally.note("killed", Reply("while writing" if writing else "at another time"))
        tally.note("it left", Reply(f"{len(left)} unfinished, {whole} whole"))
        now = start(options, folder, bodies, tally)
        tally.demand(now == first, f"the answers were {first}, and after kill {number + 1} {now}")
        tally.demand(not left & unfinished(), f"unfinished files stay: {sorted(file.name for file in left)}")
    start(options, folder, bodies, tally, "prefix read from disk")
    strange = [file.name for file in prefixes.iterdir() if file.suffix != ".safetensors"]
    tally.demand(not strange, f"strange files at the end: {strange}")


def start(options, folder, bodies, tally, logs=""):
    """Starts and ends a server without other load; returns its answers."""
    with Server(options, folder) as server:
        tally.demand(wait_for(server.healthy, 120, 0.2), "the server does not become healthy")
        replies = [server.ask(CHAT, body) for body in bodies]
        time.sleep(0.5)  # computed prefixes are being written
        tally.demand((code := server.terminate()) == 0, f"exit code {code}")
        tally.demand(server.logged(logs), f"the log lacks {logs!r}")
        for line in server.logged(" WARN | ERROR |panicked"):
            tally.demand("still loading" in line, line)
    return [(reply.outcome, dict(reply.texts)) for reply in replies]


def main():
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--binary", type=pathlib.Path, default=BINARY)
    shared.add_argument("--model", action="append", metavar="NAME|FILE", help=f"[default: {' and '.join(MODELS)}]")
    shared.add_argument("--port", type=int, default=0, help="[default: a free one]")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(required=True)
    mode = modes.add_parser("soak", parents=[shared])
    mode.add_argument("--minutes", type=float, default=20)
    mode.add_argument("--clients", type=int, default=12)
    mode.add_argument("--kv-memory", default="96MiB")
    mode.add_argument("--growth", type=float, default=2, help="percent that memory may grow in the second half")
    mode.set_defaults(run=soak)
    mode = modes.add_parser("overload", parents=[shared])
    mode.add_argument("--factor", type=int, default=10)
    mode.add_argument("--pairs", type=int, default=2)
    mode.add_argument("--seconds", type=float, default=40)
    mode.add_argument("--warm-up", type=float, default=5, help="seconds before what counts")
    mode.add_argument("--pause", type=float, default=0.1, help="seconds that a refused client waits")
    mode.set_defaults(run=overload)
    mode = modes.add_parser("kill", parents=[shared])
    mode.add_argument("--rounds", type=int, default=30, help="two of three kill while a file is written")
    mode.set_defaults(run=kill)
    options = parser.parse_args()
    options.model = options.model or MODELS
    tally = Tally()
    threading.excepthook = lambda failed: tally.demand(False, f"a thread ended: {failed.exc_value!r}")
    with tempfile.TemporaryDirectory(prefix="incant-") as folder:
        options.run(options, folder, tally)
    tally.report()
    sys.exit(tally.wrong > 0)


if __name__ == "__main__":
    main()
