# /// script
# dependencies = ["litellm==1.106.2"]
# ///
"""litellm against a running server: chat, a stream, a completion, typed errors.

    litellm_client.py BASE_URL BASE_ARM URIAL_ARM

BASE_URL is without `/v1`.
"""

import os
import sys

# Otherwise litellm downloads a price list when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402

litellm.suppress_debug_info = True

url, base, urial = sys.argv[1:]
SERVER = {"api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def chat(**parameters):
    defaults = {"model": f"openai/{urial}", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    return litellm.completion(**SERVER, **(defaults | parameters))


def expect(error: type[Exception], words: str, **parameters):
    try:
        answer = chat(**parameters)
    except error as raised:
        assert words in str(raised), raised
        return
    raise AssertionError(f"expected {error.__name__}, got {answer}")


whole = chat()
text = whole.choices[0].message.content
assert text and whole.choices[0].finish_reason in ("stop", "length"), whole
assert whole.usage.completion_tokens >= 1, whole.usage

chunks = list(chat(stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text, chunks
assert chunks[-1].usage.total_tokens == whole.usage.total_tokens, chunks[-1]

completion = litellm.text_completion(
    model=f"text-completion-openai/{base}", prompt="The quick brown fox", max_tokens=4, temperature=0, **SERVER
)
assert completion.choices[0].text, completion

expect(litellm.BadRequestError, "must be between 0 and 2", temperature=3)
expect(litellm.BadRequestError, "incant does not constrain answers", response_format={"type": "json_object"})
expect(litellm.NotFoundError, "does not exist", model="openai/no-such-model")
# litellm has a separate error type for the code `context_length_exceeded`.
long = [{"role": "user", "content": "word " * 200_000}]
expect(litellm.ContextWindowExceededError, "maximum context length", messages=long)

print(f"litellm: {text!r}")
