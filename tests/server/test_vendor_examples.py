"""The vendor's three examples, with nothing changed but the address, as programs of their own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncGenerator

import pytest

from rerank_async.server import LocalServer

KEY = "sk-for-the-three-examples-08d3"

CURL = """
curl -sS -w '\\n%{http_code}' BASE/rerank \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -d '{
    "model": "rerank-model",
    "query": "What is machine learning?",
    "documents": [
      "The weather is nice today.",
      "Machine learning is a branch of artificial intelligence.",
      "A café serves coffee.",
      "Deep learning is a kind of machine learning."
    ],
    "top_n": 2
  }'
"""

REQUESTS = """
import os
import sys

import requests

response = requests.post(
    "BASE/rerank",
    headers={
        "Content-Type": "application/json",
        "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}",
    },
    json={
        "model": "rerank-model",
        "query": "What is machine learning?",
        "documents": [
            "The weather is nice today.",
            "Machine learning is a branch of artificial intelligence.",
            "A caf\\u00e9 serves coffee.",
            "Deep learning is a kind of machine learning.",
        ],
        "top_n": 2,
    },
)
sys.stdout.buffer.write(response.content + f"\\n{response.status_code}".encode())
"""

FETCH = """
const response = await fetch("BASE/rerank", {
  method: "POST",
  headers: {
    "Content-Type": "application/json",
    "Authorization": `Bearer ${process.env.OPENAI_API_KEY}`
  },
  body: JSON.stringify({
    model: "rerank-model",
    query: "What is machine learning?",
    documents: [
      "The weather is nice today.",
      "Machine learning is a branch of artificial intelligence.",
      "A café serves coffee.",
      "Deep learning is a kind of machine learning."
    ],
    top_n: 2
  })
});
process.stdout.write(`${await response.text()}\\n${response.status}`);
"""

COMMANDS = {
    "curl": ("sh", "-c", CURL),
    "requests": (sys.executable, "-c", REQUESTS),
    "fetch": ("node", "--input-type=module", "-e", FETCH),
}
EXAMPLES = [
    pytest.param(
        name,
        marks=[]
        if needs is None
        else pytest.mark.skipif(shutil.which(needs) is None, reason=f"{needs} is not installed"),
    )
    for name, needs in (("curl", "curl"), ("requests", None), ("fetch", "node"))
]


@pytest.fixture
async def server() -> AsyncGenerator[LocalServer, None]:
    async with LocalServer(api_key=KEY) as server:
        yield server


async def run(example: str, server: LocalServer, key: str) -> tuple[int, bytes]:
    """The status and the body that the example gets."""
    command = [word.replace("BASE", server.url) for word in COMMANDS[example]]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], "OPENAI_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    body, _, status = output.rpartition(b"\n")
    return int(status), body


@pytest.mark.parametrize("example", EXAMPLES)
async def test_an_example_gets_the_two_best(example: str, server: LocalServer) -> None:
    status, body = await run(example, server, KEY)
    assert status == 200
    answer = json.loads(body)
    assert answer["object"] == "list"
    assert answer["model"] == "rerank-model"
    assert [result["index"] for result in answer["data"]] == [3, 1]
    assert answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("example", EXAMPLES)
async def test_an_example_with_a_wrong_key_gets_the_reason(
    example: str, server: LocalServer
) -> None:
    status, body = await run(example, server, "sk-wrong")
    assert status == 401
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


@pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("node") is None,
    reason="curl or node is not installed",
)
async def test_all_examples_get_the_same_bytes(server: LocalServer) -> None:
    answers = {example: await run(example, server, KEY) for example in COMMANDS}
    assert len(set(answers.values())) == 1, answers
