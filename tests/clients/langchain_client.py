# /// script
# dependencies = ["langchain-openai==1.7.3"]
# ///
"""langchain-openai against a running server: chat, a stream, a batch, a completion.

    langchain_client.py BASE_URL BASE_ARM URIAL_ARM

BASE_URL is without `/v1`.
"""

import sys

import openai
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

url, base, urial = sys.argv[1:]
SERVER = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "temperature": 0}
QUESTION = "What is the capital of France?"

chat = ChatOpenAI(model=urial, max_tokens=12, **SERVER)
whole = chat.invoke(QUESTION)
assert whole.content and whole.response_metadata["finish_reason"] in ("stop", "length"), whole
assert whole.usage_metadata["output_tokens"] >= 1, whole

streamed = list(chat.stream(QUESTION))
assert "".join(chunk.content for chunk in streamed) == whole.content, streamed

conversation = [("system", "Answer briefly."), ("human", QUESTION), ("ai", whole.content), ("human", "And of Italy?")]
for answer in chat.batch([conversation, [("human", "Say hello.")]]):
    assert isinstance(answer.content, str) and answer.usage_metadata["output_tokens"] >= 1, answer

assert OpenAI(model=base, max_tokens=4, **SERVER).invoke("The quick brown fox")


class Capital(BaseModel):
    """A structured answer."""

    name: str


# Unsupported fields are refused by name, not ignored.
for method, field in (("json_schema", "response_format"), ("json_mode", "response_format"), ("function_calling", "tools")):
    try:
        answer = chat.with_structured_output(Capital, method=method).invoke(f"{QUESTION} Answer in JSON.")
    except openai.BadRequestError as raised:
        assert raised.param == field, raised
    else:
        raise AssertionError(f"{method} is not refused: {answer}")

print(f"langchain-openai: {whole.content!r}")
