# /// script
# dependencies = ["llm==0.36"]
# ///
"""The command `llm` against a running server: streamed, whole, a conversation.

    llm_client.py BASE_URL BASE_ARM URIAL_ARM

BASE_URL is without `/v1`. The file it writes is the only configuration that a user of `llm` needs.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

url, base, urial = sys.argv[1:]

MODELS = f"""
- model_id: assistant
  model_name: "{urial}"
  api_base: "{url}/v1"
- model_id: raw
  model_name: "{base}"
  api_base: "{url}/v1"
  completion: true
"""

with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / "extra-openai-models.yaml").write_text(MODELS)

    def llm(*arguments: str) -> str:
        command = [pathlib.Path(sys.executable).parent / "llm", *arguments]
        common = ["--key", "none", "-o", "temperature", "0", "-o", "max_tokens", "12"]
        told = subprocess.run(
            command + common, env=os.environ | {"LLM_USER_PATH": folder}, capture_output=True, text=True, timeout=300
        )
        assert told.returncode == 0, told
        return told.stdout.strip()

    question = "What is the capital of France?"
    streamed = llm("-m", "assistant", question)
    assert streamed and streamed == llm("-m", "assistant", question, "--no-stream"), streamed
    assert llm("--continue", "And of Italy?")
    assert llm("-m", "raw", "The quick brown fox")

print(f"llm: {streamed!r}")
