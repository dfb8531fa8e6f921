#!/usr/bin/env python3
"""Puts a server under trying conditions, and says what it did wrong.

    benches/soak.py soak [--minutes M]     mixed load from many clients, then SIGTERM
    benches/soak.py overload [--factor N]  N times as many clients as there are slots
    benches/soak.py kill [--rounds N]      kill -9 while prefixes are computed and written

Each starts servers of its own (target/release/incant, or --binary) with a prefix
folder of their own; INCANT_MODELS and the like reach them. The exit status is 1 if
anything was wrong.

soak holds every answer to what its kind of request must get, and some greedy ones to
what they were on the idle server. overload compares the tokens per second of complete
answers. kill wants each next start to answer as ever and to leave nothing behind.
"""

import argparse
import collections
import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

BINARY = pathlib.Path(__file__).resolve().parent.parent / "target/release/incant"
MODELS = ["gemma-3-270m", "smollm2-135m-instruct"]
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
ARMS = {CHAT: ["", "@urial", "@turn", "@base", "@urial-ja"], COMPLETE: ["", "@urial", "@urial-ja"]}
QUESTIONS = ["What makes the sky blue?", "How do I boil an egg?", "Name three uses for a brick.",
             "日本で一番高い山は何ですか。", "Translate to French: The cat sleeps 🐈 on the roof."]  # fmt: skip
DOCUMENTS = [" ".join(f"House {n} has a {what} that is {n * 7 % 31} years old." for n in range(40)) + "\nHouse"
             for what in ("door", "roof", "gate", "lamp")]  # fmt: skip
LONG = "long " * 9000
# Kinds of requests: how often, where to, what is in them, and the outcomes that are right.
MIX = {
    "chat": (20, CHAT, [{}], "200"),
    "conversation": (14, CHAT, [{}], "200"),
    "shared prompt": (12, COMPLETE, [{"prompt": text} for text in DOCUMENTS], "200"),
    "long answers": (2, COMPLETE, [{"prompt": "Once", "n": 3, "max_tokens": 300, "ignore_eos": True}], "200"),
    "several": (6, CHAT, [{"n": 2}, {"n": 4}], "200"),
    "crowd": (1, CHAT, [{"n": 48, "max_tokens": 3}], "200"),
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
    "unknown model": (2, CHAT, [{"model": "nobody"}, {"model": MODELS[0] + "@nobody"}], "404 model_not_found"),
    "bad field": (4, CHAT, [{"temperature": 3}, {"max_tokens": -1}, {"messages": "hello"}, {"messages": []}, {"n": 0},
                            {"n": 100}, {"top_p": "high"}, {"stop": [""]}, {"timeout": 0}, {"logit_bias": {"-1": 2}},
                            {"tools": [{"type": "function", "function": {"name": "f"}}]}], "400"),
}  # fmt: skip
Reply = collections.namedtuple("Reply", "outcome texts tokens retry_after body", defaults=[{}, 0, None, None])


class Server:
    """A server process."""

    def __init__(self, options, folder, *more):
        self.port = options.port or free_port()
        self.log = pathlib.Path(folder, "log")
        command = [options.binary, "serve", "--port", str(self.port), "--prefix-dir", f"{folder}/prefixes", *more]
        command += [f"--model={model}" for model in options.model]
        # A key that is set for other servers would lock this one.
        environment = {name: value for name, value in os.environ.items() if name != "INCANT_API_KEY"}
        self.process = subprocess.Popen(command, stderr=self.log.open("w"), env=environment)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def healthy(self):
        if self.process.poll() is not None:
            sys.exit(f"the server ended with {self.process.returncode}: {self.log.read_text()}")
        with contextlib.suppress(OSError):
            return self.get("/health")[0] == 200

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def get(self, path):
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def ask(self, path, body):
        with contextlib.closing(self.connect()) as connection:
            return read(post(connection, path, body))

    def metrics(self):
        """Each metric's sum over its labels; that of outcomes by the outcome."""
        sums = collections.Counter()
        for name, labels, value in re.findall(r"^incant_(\w+)(?:\{(.*)\})? (\S+)$", self.get("/metrics")[1], re.M):
            outcome = re.search(r'outcome="(\w+)"', labels)
            sums[outcome[1] if outcome else name] += float(value)
        return sums

    def idle(self):
        metrics = self.metrics()
        return metrics["running_sequences"] + metrics["waiting_sequences"] == 0

    def memory(self, what="VmRSS"):
        """In MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+)", status)[1]) / 1024

    def logged(self, pattern):
        return [line for line in self.log.read_text(errors="replace").splitlines() if re.search(pattern, line)]

    def terminate(self):
        """The exit code after SIGTERM; None if it takes longer than it may drain."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(35)


class Tally:
    """What was seen and what was wrong, by all threads together."""

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


def say(text):
    print(f"{time.strftime('%X')}  {text}", flush=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition, seconds, pause=0.05):
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(pause)
    return met


def user(text):
    return [{"role": "user", "content": text}]


def post(connection, path, body):
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def events(response):
    return (line[6:].strip() for line in response if line.startswith(b"data: "))


def read(response):
    """Reads a response to its end. The outcome is its status, with the error's code or what is wrong with it."""
    texts, finished, done = collections.defaultdict(str), set(), True
    if response.headers.get_content_type() == "text/event-stream":
        chunks = [*events(response)]
        done = chunks[-1:] == [b"[DONE]"]
        bodies = [json.loads(chunk) for chunk in (chunks[:-1] if done else chunks)] or [{}]
    else:
        bodies = [json.loads(response.read())]
    if error := bodies[-1].get("error"):
        status = "200, then" if response.status == 200 else response.status
        outcome = f"{status} {error['code'] or ''}".strip()
        outcome += "" if set(error) == {"message", "type", "param", "code"} else " in another form"
        return Reply(outcome, texts, 0, response.headers["Retry-After"], bodies)
    for choice in (choice for body in bodies for choice in body.get("choices", [])):
        part = choice.get("delta") or choice.get("message") or choice
        texts[choice["index"]] += part.get("text") or part.get("content") or ""
        finished |= {choice["index"]} if choice["finish_reason"] in ("stop", "length") else set()
    tokens = (bodies[-1].get("usage") or {}).get("completion_tokens", 0)
    outcome = "200" if done and texts and finished == set(texts) else "200, but it is not complete"
    return Reply(outcome, texts, tokens, None, bodies)


class Client(threading.Thread):
    """Asks one thing after the other."""

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
            else:
                self.ask(kind, path, body, expected)

    def common(self, path):
        chance = self.random
        body = {"model": chance.choice(self.models) + chance.choice(ARMS[path]), "stream": chance.random() < 0.5}
        body |= {"max_tokens": chance.randint(4, 40), "temperature": chance.choice([0, 0.7, 1.3])}
        return body | ({"messages": user(chance.choice(QUESTIONS))} if path == CHAT else {})

    def converse(self, body):
        """The next turn of the conversation, or the first of a new one."""
        if len(self.talk) > 10 or not self.talk:
            self.talk, self.arm = [], body["model"]
        body |= {"model": self.arm, "messages": self.talk + body["messages"]}
        reply = self.ask("conversation", CHAT, body, "200")
        if reply.outcome == "200":
            self.talk = [*body["messages"], {"role": "assistant", "content": reply.texts[0]}]

    def ask(self, kind, path, body, expected, attempt=None):
        """Asks until the queue has a place, and judges the outcome."""
        while True:
            try:
                reply = (attempt or self.attempt)(path, body)
            except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
                self.connection.close()
                self.ending.wait(1)
                reply = Reply(f"failed: {error!r}")
            self.tally.note(kind, reply)
            if reply.outcome != "429 queue_full":
                break
            self.tally.demand((reply.retry_after or "").isdigit(), f"429 with Retry-After {reply.retry_after}")
            if self.ending.wait(float(reply.retry_after or 1)):
                return reply
        told = json.dumps(body, ensure_ascii=False)[:700]
        why = f"{kind}: {reply.outcome} for {path} {told}: {str((reply.body or [''])[-1])[:300]}"
        self.tally.demand(reply.outcome in expected.split("|"), why)
        if reply.outcome == "200":
            answers = body.get("n", 1) * (len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1)
            self.tally.demand(len(reply.texts) == answers, f"{len(reply.texts)} answers for {path} {told}")
        return reply

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


def probe(server, models, tally):
    """Greedy requests, with what they are answered."""
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
    """Writes a line; resident MiB."""
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
        probes, ending = probe(server, options.model, tally), threading.Event()
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
        tally.demand(not any(client.is_alive() for client in clients), "a client waits for its answer")
        tally.demand(wait_for(server.idle, 10), "sequences run or wait though all clients have left")
        samples.append((time.monotonic() - began, sample(server, tally)))
        for (path, body, before), (_, _, now) in zip(probes, probe(server, options.model, tally)):
            tally.demand(now == before, f"{path} {body} gave {before!r} at first, at last {now!r}")
        warm = [(since, resident) for since, resident in samples if since >= samples[-1][0] / 5]
        slope = statistics.linear_regression(*zip(*warm)).slope * 60 if len(warm) > 1 else 0
        print(f"resident after a fifth of the time {warm[0][1]:.0f} MiB, at the end {warm[-1][1]:.0f} MiB, "
              f"{slope:+.2f} MiB a minute")  # fmt: skip
        tally.demand(warm[-1][1] - warm[0][1] <= options.growth, "resident memory grows")
        tally.demand(server.metrics()["failed"] == 0, "the server counts failed requests")
        drain(server, options, tally)
        for line in server.logged("ERROR|panicked"):
            tally.demand(False, line)
        warnings = [re.sub(r"request\{.*?\}|\d+", "…", line[27:]) for line in server.logged(" WARN ")]
        print("".join(f"  {count} x {line}\n" for line, count in collections.Counter(warnings).items()), end="")


def drain(server, options, tally):
    """With answers on their way, SIGTERM must let them end, and take nothing new."""
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
    """Tokens per second of answers that are complete, with so many clients."""
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
        os.nice(5)  # this process, not the server: clients are elsewhere
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
    """Starts and ends a server that is left in peace; its answers."""
    with Server(options, folder) as server:
        tally.demand(wait_for(server.healthy, 120, 0.2), "the server does not become healthy")
        replies = [server.ask(CHAT, body) for body in bodies]
        time.sleep(0.5)  # what was computed is being written
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
    mode.add_argument("--minutes", type=float, default=30)
    mode.add_argument("--clients", type=int, default=12)
    mode.add_argument("--kv-memory", default="96MiB")
    mode.add_argument("--growth", type=float, default=64, help="MiB that memory may grow after a fifth of the time")
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
