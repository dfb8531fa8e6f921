"""Schemathesis over the /openapi.json of a running server.

    pip install schemathesis==4.32.5
    schemathesis_run.py BASE_URL [OPTION...]

BASE_URL is without `/v1`; options are passed to `schemathesis run`. INCANT_API_KEY is
sent if it is set. Valid and invalid requests are generated from the document, and every
response is checked against it: no 5xx, no status, header, content type or body that the
document does not define. Start the server with a short timeout such as
`--request-timeout 2`, because many valid requests take long; they end with 408, which the
document defines. The same seed generates the same requests.

Schemathesis also loads its hooks from this file: they give most requests a served model,
tokens of its vocabulary and few short answers; otherwise nearly all would be refused.
"""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import schemathesis

VERSION = "4.32.5"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)
# The minimum vocabulary size.
TOKENS = 1000
MODEL_VARIABLE = "SCHEMATHESIS_MODEL"
HERE = pathlib.Path(__file__).resolve()


@schemathesis.hook
def before_call(context, case, kwargs):
    """Adapts three of four requests such that they reach a model if they were valid."""
    if isinstance(case.body, dict) and len(json.dumps(case.body, default=str)) % 4:
        at_home(case.body)
        if case.path.endswith("/completions"):
            in_short(case.body)


def at_home(body):
    """Replaces names and tokens by ones that this server knows."""
    if isinstance(body.get("model"), str):
        body["model"] = os.environ[MODEL_VARIABLE]
    for name in "tokens", "stop_token_ids", "prompt":
        if name in body:
            body[name] = known_tokens(body[name])
    if isinstance(bias := body.get("logit_bias"), dict) and all(key.isdecimal() for key in bias):
        body["logit_bias"] = {str(int(key) % TOKENS): value for key, value in bias.items()}


def in_short(body):
    """Limits the number and length of answers, and removes contradicting fields."""
    if body.get("max_tokens") is None:
        body["max_tokens"] = 4
    for name, most in {"max_tokens": 4, "n": 3}.items():
        if is_number(body.get(name)) and body[name] > most:
            body[name] = most
    body.pop("max_completion_tokens", None)
    if body.get("stream") is not True:
        body.pop("stream_options", None)
    if body.get("logprobs") is not True:
        body.pop("top_logprobs", None)
    body.pop("best_of", None)


def known_tokens(value):
    if isinstance(value, list):
        return [known_tokens(item) for item in value]
    return value % TOKENS if is_number(value) and value > 0 else value


def is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


def ask(url):
    request = urllib.request.Request(url)
    if key := os.environ.get("INCANT_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    return json.load(urllib.request.urlopen(request))


def main():
    installed = importlib.metadata.version("schemathesis")
    if installed != VERSION:
        sys.exit(f"schemathesis {VERSION} is wanted, not {installed}")
    url, *options = sys.argv[1:]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": HERE.stem,
        "PYTHONPATH": str(HERE.parent),
        MODEL_VARIABLE: ask(f"{url}/v1/models")["data"][0]["id"],
    }
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    command += ["--checks", CHECKS, "--mode", "all", "--phases", "examples,coverage,fuzzing"]
    command += ["--seed", "1", "--max-examples", "100", "--continue-on-failure", "--request-timeout", "60"]
    if key := os.environ.get("INCANT_API_KEY"):
        command += ["--header", f"Authorization: Bearer {key}"]
    # The state that it stores for a run is of no use to the next one.
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(subprocess.run(command + options, env=environment, cwd=folder).returncode)


if __name__ == "__main__":
    main()
