# /// script
# dependencies = ["openai==3.54.0"]
# ///
"""The official openai client against a running server.

    openai_client.py BASE_URL BASE_ARM URIAL_ARM

BASE_URL is without `/v1`. Every check holds for any model. The first failing check ends
the run with a traceback; a successful run prints its checks.
"""

import sys
from typing import Callable

import openai
from openai import OpenAI

CHECKS: list[Callable[["Served"], None]] = []

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = "The quick brown fox jumps over the"


class Served:
    """A server under test, and the arms to request."""

    def __init__(self, url: str, base: str, urial: str):
        self.client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
        self.base = base
        self.urial = urial

    def chat(self, **parameters):
        defaults = {"model": self.urial, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
        return self.client.chat.completions.create(**(defaults | parameters))

    def complete(self, **parameters):
        defaults = {"model": self.base, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        return self.client.completions.create(**(defaults | parameters))


def check(function):
    CHECKS.append(function)
    return function


def expect(error: type[openai.APIStatusError], call: Callable, *, param=None, code=None):
    """Asserts that `call` fails with this error and its details."""
    try:
        answer = call()
    except error as raised:
        assert raised.param == param, f"{raised.param} instead of {param}: {raised}"
        assert raised.code == code, f"{raised.code} instead of {code}: {raised}"
        assert raised.type == "invalid_request_error", raised.type
        assert raised.request_id, "every response has a name"
        return
    raise AssertionError(f"expected {error.__name__}, got {answer}")


@check
def models(served: Served):
    listed = {model.id: model for model in served.client.models.list()}
    assert served.base in listed and served.urial in listed, list(listed)
    for arm in (served.base, served.urial):
        one = served.client.models.retrieve(arm)
        assert one == listed[arm], (one, listed[arm])
        assert one.object == "model" and one.created > 0
    expect(openai.NotFoundError, lambda: served.client.models.retrieve("no@such"), param="model", code="model_not_found")


@check
def chat(served: Served):
    for arm in (served.base, served.urial):
        answer = served.chat(model=arm)
        assert answer.object == "chat.completion" and answer.model == arm
        [choice] = answer.choices
        assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
        assert choice.finish_reason in ("stop", "length") and choice.logprobs is None
        usage = answer.usage
        assert 1 <= usage.completion_tokens <= 12
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert served.chat().choices == served.chat().choices, "greedy is repeatable"


@check
def a_conversation_can_go_on(served: Served):
    first = served.chat().choices[0].message
    messages = [
        {"role": "system", "content": "Answer briefly."},
        *QUESTION,
        # The whole message is sent back, with all nulls that the client adds.
        first.model_dump(),
        {"role": "user", "content": [{"type": "text", "text": "And of"}, {"type": "text", "text": "Italy?"}]},
    ]
    assert served.chat(messages=messages).usage.prompt_tokens > served.chat().usage.prompt_tokens


@check
def chat_stream(served: Served):
    whole = served.chat()
    chunks = list(served.chat(stream=True, stream_options={"include_usage": True}))
    *body, last = chunks
    assert last.choices == [] and last.usage.total_tokens == whole.usage.total_tokens
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and {chunk.created for chunk in chunks} == {chunks[0].created}
    assert all(chunk.object == "chat.completion.chunk" and chunk.usage is None for chunk in body)
    assert body[0].choices[0].delta.role == "assistant" and body[0].choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in body)
    assert text == whole.choices[0].message.content, (text, whole)
    reasons = [chunk.choices[0].finish_reason for chunk in body]
    assert reasons[-1] == whole.choices[0].finish_reason and set(reasons[:-1]) == {None}


@check
def chat_stream_helper(served: Served):
    """Tests the client's stream accumulator, which is strict about the order of events."""
    parameters = {"model": served.urial, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    with served.client.chat.completions.stream(**parameters) as stream:
        for event in stream:
            if event.type == "content.done":
                done = event.content
        # `get_final_completion` treats the finish reason `length` as an error.
        final = stream.current_completion_snapshot
    assert final.choices[0].message.content == done == served.chat().choices[0].message.content


@check
def a_stream_can_be_left(served: Served):
    with served.chat(stream=True, max_tokens=200) as stream:
        next(iter(stream))
    assert served.chat(max_tokens=1).choices, "the server answers others"


@check
def chat_logprobs(served: Served):
    answer = served.chat(logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    spelled = b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace")
    assert spelled == answer.choices[0].message.content
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob == entry.logprob, "greedy takes the most likely"


@check
def completion(served: Served):
    for arm in (served.base, served.urial):
        answer = served.complete(model=arm)
        assert answer.object == "text_completion" and answer.model == arm
        [choice] = answer.choices
        assert choice.finish_reason in ("stop", "length") and isinstance(choice.text, str)
    text = served.complete().choices[0].text
    streamed = "".join(chunk.choices[0].text for chunk in served.complete(stream=True))
    assert streamed == text, (streamed, text)
    assert served.complete(echo=True).choices[0].text == PROMPT + text
    assert served.complete(max_tokens=0).choices[0].text == ""


@check
def completion_logprobs(served: Served):
    choice = served.complete(logprobs=2, echo=True).choices[0]
    scores = choice.logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == len(scores.text_offset)
    if not any(token.startswith("bytes:") for token in scores.tokens):
        assert "".join(scores.tokens) == choice.text
    # Nothing precedes the first token of a base arm.
    assert scores.token_logprobs[0] is None and scores.top_logprobs[0] is None
    for token, score, top in list(zip(scores.tokens, scores.token_logprobs, scores.top_logprobs))[1:]:
        assert top[token] == score, (token, score, top)


@check
def several_answers(served: Served):
    answer = served.chat(n=2, temperature=1, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1]
    again = served.chat(n=2, temperature=1, seed=7)
    assert again.choices == answer.choices, "the same seed says the same"
    texts = {0: "", 1: ""}
    for chunk in served.chat(n=2, temperature=1, seed=7, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in answer.choices}
    lists = served.complete(prompt=["One", "Two", "Three"], n=2, max_tokens=2)
    assert [choice.index for choice in lists.choices] == list(range(6))


@check
def stop(served: Served):
    text = served.complete(max_tokens=16, extra_body={"ignore_eos": True}).choices[0].text
    middle = text[len(text) // 2 :][:2]
    choice = served.complete(max_tokens=16, stop=["no such text anywhere", middle], extra_body={"ignore_eos": True}).choices[0]
    assert choice.text == text[: text.index(middle)] and choice.finish_reason == "stop", (text, choice)


@check
def errors_are_typed(served: Served):
    bad = openai.BadRequestError
    expect(bad, lambda: served.chat(temperature=3), param="temperature")
    expect(bad, lambda: served.chat(messages=[]), param="messages")
    expect(bad, lambda: served.chat(messages=[{"role": "robot", "content": "x"}]), param="messages[0].role")
    expect(bad, lambda: served.chat(max_tokens=0), param="max_tokens")
    expect(bad, lambda: served.chat(tools=[{"type": "function", "function": {"name": "f"}}]), param="tools")
    expect(bad, lambda: served.chat(temperature=3, stream=True), param="temperature")
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    expect(bad, lambda: served.chat(messages=[{"role": "user", "content": image}]), param="messages[0].content[0].type")
    expect(bad, lambda: served.complete(logprobs=9), param="logprobs")
    expect(bad, lambda: served.complete(suffix="x"), param="suffix")
    long = "word " * 200_000
    expect(bad, lambda: served.complete(prompt=long), param="prompt", code="context_length_exceeded")
    missing = openai.NotFoundError
    expect(missing, lambda: served.chat(model="no-such-model"), param="model", code="model_not_found")
    expect(missing, lambda: served.chat(model=f"{served.base.split('@')[0]}@no-such"), param="model", code="model_not_found")
    expect(missing, lambda: served.client.embeddings.create(model=served.base, input="x"))


@check
def what_took_too_long_is_not_repeated(served: Served):
    patient = served.client.with_options(max_retries=3)
    parameters = {"model": served.base, "prompt": PROMPT, "extra_body": {"timeout": 0.000001}}
    for stream in (False, True):
        try:
            patient.completions.create(**parameters, stream=stream)
        except openai.APIStatusError as raised:
            assert (raised.status_code, raised.type, raised.code) == (408, "timeout_error", "request_timeout"), raised
            assert raised.request.headers["x-stainless-retry-count"] == "0", "asked once"
        else:
            raise AssertionError("a microsecond is not enough")


def main():
    url, base, urial = sys.argv[1:]
    served = Served(url, base, urial)
    for function in CHECKS:
        function(served)
        print(f"ok {function.__name__}", flush=True)
    print(f"{len(CHECKS)} checks with openai {openai.__version__}")


if __name__ == "__main__":
    main()
