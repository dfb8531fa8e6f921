# /// script
# dependencies = ["instructor==1.17.0"]
# ///
"""instructor against a running server: typed answers, without tools or formats.

    instructor_client.py BASE_URL BASE_ARM URIAL_ARM

BASE_URL is without `/v1`. The mode `MD_JSON` only asks for a block of JSON in the
prompt. A small base model does not follow that instruction, but it follows examples: two
turns of the conversation show the expected format.
"""

import sys

import instructor
import openai
from pydantic import BaseModel

url, _, urial = sys.argv[1:]


class Capital(BaseModel):
    country: str
    capital: str


def shown(country: str, capital: str) -> list[dict]:
    answer = f"```json\n{Capital(country=country, capital=capital).model_dump_json()}\n```"
    return [question(country), {"role": "assistant", "content": answer}]


def question(country: str) -> dict:
    return {"role": "user", "content": f"What is the capital of {country}?"}


REQUEST = {
    "model": urial,
    "response_model": Capital,
    "max_retries": 0,
    "max_tokens": 64,
    "temperature": 0,
    "messages": [*shown("Spain", "Madrid"), *shown("Italy", "Rome"), question("France")],
}


def client(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=mode)


served = client(instructor.Mode.MD_JSON).chat.completions
typed = served.create(**REQUEST)
assert typed.country and typed.capital, typed
*_, last = served.create_partial(**REQUEST)
assert last.model_dump() == typed.model_dump(), (last, typed)

# Unsupported fields are refused by name, not ignored.
for mode, field in (("JSON", "response_format"), ("JSON_SCHEMA", "response_format"), ("TOOLS", "tools")):
    try:
        answer = client(instructor.Mode[mode]).chat.completions.create(**REQUEST)
    except instructor.core.InstructorRetryException as raised:
        assert f"'param': '{field}'" in str(raised), raised
    else:
        raise AssertionError(f"{mode} is not refused: {answer}")

print(f"instructor: {typed!r}")
