#!/usr/bin/env python3
"""Tests two replicas behind HAProxy, including the failure of one.

    deploy/test.py [--incant PATH] [--model NAME] [--seconds N]

Requires `haproxy`, a built `incant`, and a downloaded model. Starts two
servers and a HAProxy with `haproxy.cfg`, all on free ports of the loopback, and
checks that

- requests for one arm are routed to one replica, and arms are spread;
- a request keeps its id, and a client that disconnects frees its slot;
- when a replica is killed under load, only the streams it had begun are lost, and
  each of them ends with an error at the client, never as if it were complete;
- when a replica shuts down gracefully, nothing is lost at all;
- when none is left, the error has the API's format.

Prints its observations and fails at the first failed check.
"""

import argparse
import collections
import contextlib
import csv
import http.client
import io
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent

# The maximum time of anything that happens without further action.
PATIENCE = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(what: str, holds):
    """Waits until `holds()` returns a true value; returns that value."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if said := holds():
                return said
        time.sleep(0.1)
    raise AssertionError(f"not so after {PATIENCE} s: {what}")


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Replica:
    """One server, which can be stopped and restarted on the same port."""

    def __init__(self, name: str, options: argparse.Namespace, folder: pathlib.Path):
        self.name = name
        self.port = free_port()
        self.command = [
            options.incant, "serve", "--model", options.model, "--port", str(self.port),
            "--threads", "1", "--kv-memory", "256MiB", "--shutdown-delay", "5", "--drain", "60",
            "--prefix-dir", str(folder / "prefixes"),
        ]
        self.log = open(folder / f"{name}.log", "ab")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(self.command, stderr=self.log, stdout=self.log)
        eventually(f"{self.name} is ready", lambda: get(self.port, "/health")[0] == 200)

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)


class Entrance:
    """HAProxy with the configuration of this folder."""

    def __init__(self, replicas: list[Replica], folder: pathlib.Path):
        self.port, self.admin = free_port(), free_port()
        places = {f"REPLICA_{i}": f"127.0.0.1:{replica.port}" for i, replica in enumerate(replicas, 1)}
        places |= {"LISTEN": f"127.0.0.1:{self.port}", "ADMIN": f"127.0.0.1:{self.admin}"}
        places |= {"SOCKET": str(folder / "haproxy.sock")}
        self.log = folder / "haproxy.log"
        self.counted = 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["haproxy", "-f", HERE / "haproxy.cfg"], env=os.environ | places, stdout=log, stderr=log
            )

    def up(self) -> set[str]:
        """Returns the replicas that HAProxy routes requests to."""
        rows = csv.DictReader(io.StringIO(get(self.admin, "/;csv")[1].removeprefix("# ")))
        return {row["svname"] for row in rows if row["pxname"] == "replicas" and row["status"] == "UP"} - {"BACKEND"}

    def retried(self) -> int:
        """Returns the number of requests that HAProxy has retried since the last call."""
        before, self.counted = self.counted, len(re.findall(r"retries=\+?[1-9]", self.log.read_text()))
        return self.counted - before


class Answer:
    """One request through HAProxy, and its outcome."""

    def __init__(self, body: dict):
        self.body = body
        self.stream = body.get("stream", False)
        self.replica = None
        self.text = b""
        self.error = None
        self.ended = False

    def fetch(self, port: int) -> "Answer":
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(connection):
            try:
                connection.request("POST", "/v1/completions", json.dumps(self.body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                self.replica = answer.headers["X-Replica"]
                while part := answer.read1(65536):
                    self.text += part
                if answer.status != 200:
                    self.error = f"{answer.status}: {self.text.decode()}"
            except (OSError, http.client.HTTPException) as error:
                self.error = repr(error)
        self.ended = True
        return self

    def streams_from(self, replica: Replica) -> bool:
        """Returns whether it is a stream that has begun but not ended."""
        return self.stream and self.replica == replica.name and self.text and not self.ended

    @property
    def whole(self) -> bool:
        """Returns whether a client sees the answer as complete."""
        if self.error:
            return False
        end = b"data: [DONE]\n\n"
        return self.text.endswith(end) if self.stream else "choices" in json.loads(self.text)


class Load:
    """Clients that send one request after the other, streamed and not, until they are stopped."""

    def __init__(self, entrance: Entrance, arms: list[str], clients: int = 8):
        self.entrance = entrance
        self.answers: list[Answer] = []
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(i, arms)) for i in range(clients)]

    def client(self, index: int, arms: list[str]):
        for turn in itertools.count(index):
            if self.stopped.is_set():
                return
            body = {
                "model": arms[turn % len(arms)], "prompt": f"Client {index}, turn {turn}.",
                "max_tokens": 24, "ignore_eos": True, "stream": index % 2 == 0,
            }
            answer = Answer(body)
            self.answers.append(answer)
            answer.fetch(self.entrance.port)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def count(self) -> str:
        whole = [answer for answer in self.answers if answer.whole]
        by_replica = collections.Counter(answer.replica for answer in whole)
        streams = sum(answer.stream for answer in whole)
        return f"{len(self.answers)} asked, {len(whole)} whole ({streams} streams; {dict(by_replica)})"


def arms_stay_where_they_are(entrance: Entrance, replicas: list[Replica], arms: list[str]):
    home = {}
    for arm in arms:
        for text in ["Hello", "Hello again", "word " * 40_000]:
            # The model may come last, as some clients write it. The text is longer than HAProxy's
            # default buffer; the answer may be that it is too long for the context.
            answer = Answer({"prompt": text, "max_tokens": 1, "model": arm}).fetch(entrance.port)
            assert answer.whole or "context_length_exceeded" in answer.error, answer.error
            assert home.setdefault(arm, answer.replica) == answer.replica, (arm, home, answer.replica)
    assert set(home.values()) == {replica.name for replica in replicas}, home
    # The replicas' metrics agree.
    for replica in replicas:
        finished = re.findall(
            r'^incant_requests_total{arm="([^"]+)",outcome="finished"} [1-9]', get(replica.port, "/metrics")[1], re.M
        )
        assert set(finished) == {arm for arm in arms if home[arm] == replica.name}, (replica.name, finished, home)
    print(f"arms stay: {home}")
    # A request that does not fit in HAProxy's buffer is forwarded all the same.
    answer = Answer({"prompt": "word " * 200_000, "max_tokens": 1, "model": arms[0]}).fetch(entrance.port)
    assert "context_length_exceeded" in answer.error, answer.error


def names_are_kept_and_leavers_let_go(entrance: Entrance, replicas: list[Replica], arms: list[str]):
    connection = http.client.HTTPConnection("127.0.0.1", entrance.port, timeout=PATIENCE)
    body = {"model": arms[0], "prompt": "On and on", "max_tokens": 1}
    headers = {"Content-Type": "application/json", "X-Request-Id": "mine"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.headers["X-Request-Id"] == "mine" and answer.read(), answer.headers
    # The whole answer would take long; none of it is sent before it is complete.
    lasting = body | {"max_tokens": 1500, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(lasting), headers)
    time.sleep(1)
    connection.close()
    left = re.compile(r'^incant_requests_total{.*outcome="left"} 1$', re.M)
    eventually("it is seen to leave", lambda: any(left.search(get(r.port, "/metrics")[1]) for r in replicas))
    print("a request keeps its name; a client that left gave its place free")


def a_replica_is_killed(entrance: Entrance, replicas: list[Replica], arms: list[str], seconds: float):
    victim, other = replicas
    with Load(entrance, arms) as load:
        time.sleep(seconds)
        eventually("it streams", lambda: any(answer.streams_from(victim) for answer in load.answers))
        code = victim.end(signal.SIGKILL)
        time.sleep(seconds)
    assert code == -signal.SIGKILL, code
    lost = [answer for answer in load.answers if not answer.whole]
    for answer in lost:
        assert answer.stream and answer.replica == victim.name and answer.text, (
            f"lost though it was no begun stream of {victim.name}: {answer.replica} {answer.text} {answer.error}"
        )
        assert answer.error, f"a cut stream looks complete: {answer.text}"
    assert lost, "nothing was cut, so nothing was tried"
    assert entrance.up() == {other.name}, entrance.up()
    errors = collections.Counter(answer.error.split("(")[0] for answer in lost)
    print(f"killed {victim.name}: {load.count()}; {len(lost)} begun streams cut: {dict(errors)}; "
          f"{entrance.retried()} asked again elsewhere")
    victim.start()
    eventually(f"{victim.name} is back", lambda: entrance.up() == {victim.name, other.name})


def a_replica_ends(entrance: Entrance, replicas: list[Replica], arms: list[str], seconds: float):
    other, leaver = replicas
    with Load(entrance, arms) as load:
        time.sleep(seconds)
        began = time.monotonic()
        code = leaver.end(signal.SIGTERM)
        took = time.monotonic() - began
        time.sleep(seconds)
    assert code == 0, code
    lost = [(answer.replica, answer.text, answer.error) for answer in load.answers if not answer.whole]
    assert not lost, lost
    assert entrance.up() == {other.name}, entrance.up()
    print(f"ended {leaver.name} in {took:.1f} s: {load.count()}; nothing lost; "
          f"{entrance.retried()} asked again elsewhere")


def nobody_is_left(entrance: Entrance, last: Replica, arms: list[str]):
    last.end(signal.SIGTERM)
    eventually("HAProxy sees none", lambda: not entrance.up())
    answer = Answer({"model": arms[0], "prompt": "Hello"}).fetch(entrance.port)
    status, _, body = answer.error.partition(": ")
    assert status == "503" and json.loads(body)["error"]["type"] == "service_unavailable", answer.error
    assert get(entrance.port, "/health")[0] == 503
    print("with none left: 503")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--incant", default=HERE.parent / "target/release/incant")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seconds", type=float, default=8, help="of load before and after a replica goes")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="incant-deploy-")))
        replicas = [Replica(name, options, folder) for name in ("replica1", "replica2")]
        for replica in replicas:
            replica.start()
            stack.callback(lambda replica=replica: replica.process.kill())
        entrance = Entrance(replicas, folder)
        stack.callback(entrance.process.kill)
        eventually("HAProxy sees both", lambda: entrance.up() == {replica.name for replica in replicas})
        listed = json.loads(get(entrance.port, "/v1/models")[1])
        arms = [model["id"] for model in listed["data"]]
        arms_stay_where_they_are(entrance, replicas, arms)
        names_are_kept_and_leavers_let_go(entrance, replicas, arms)
        a_replica_is_killed(entrance, replicas, arms, options.seconds)
        a_replica_ends(entrance, replicas, arms, options.seconds)
        nobody_is_left(entrance, replicas[0], arms)
    print("all as it should be")


if __name__ == "__main__":
    main()
