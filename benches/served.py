"""A server process and its replies, shared by the load tests."""

import collections
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

Reply = collections.namedtuple("Reply", "outcome texts tokens retry_after body", defaults=[{}, 0, None, None])


class Server:
    """A server process."""

    def __init__(self, options, folder, *more):
        self.port = options.port or free_port()
        self.log = pathlib.Path(folder, "log")
        command = [options.binary, "serve", "--port", str(self.port), "--prefix-dir", f"{folder}/prefixes", *more]
        command += [f"--model={model}" for model in options.model]
        # A key that is set for other servers would lock out the clients of this one.
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
        """Returns each metric's sum over its labels; outcomes are summed separately."""
        sums = collections.Counter()
        for name, labels, value in re.findall(r"^incant_(\w+)(?:\{(.*)\})? (\S+)$", self.get("/metrics")[1], re.M):
            outcome = re.search(r'outcome="(\w+)"', labels)
            sums[outcome[1] if outcome else name] += float(value)
        return sums

    def idle(self):
        metrics = self.metrics()
        return metrics["running_sequences"] + metrics["waiting_sequences"] == 0

    def memory(self, what="VmRSS"):
        """Returns a kind of memory in MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+)", status)[1]) / 1024

    def logged(self, pattern):
        return [line for line in self.log.read_text(errors="replace").splitlines() if re.search(pattern, line)]

    def terminate(self):
        """Returns the exit code after SIGTERM; None if the shutdown takes longer than the drain timeout."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(35)


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
    """Reads a response to its end. The outcome is its status, with the error's code or the fault of the response."""
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
