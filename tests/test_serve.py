"""The HTTP API through the clients that others use, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ollama
import openai
import PIL.Image
import pytest
import uvicorn
import vector_models
from conftest import Cli
from pydantic import BaseModel
from running_server import Running, serving

from localai import warm
from localai.server import app, connections, security
from localai.server.ollama import requests as ollama_requests
from localai.server.openai import requests

MODEL = "smollm2-135m"
ASKED = [{"role": "user", "content": "Name the capital of France."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}
LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell a very long story."}],
    "temperature": 0,
    "logit_bias": {"0": -100, "2": -100},  # it never ends by itself
}
PAGE = "https://page.example"
PIXEL = base64.b64encode(b"not an image").decode()


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("home"), "--port", "0", "--context", "2048", "--parallel", "2") as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(
    server: Running, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("GET" if body is None else "POST", path, skip_host="Host" in (headers or {}))
        for name, value in (headers or {}).items():
            connection.putheader(name, value.encode())
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content[:1] == b"{" else content


# ----------------------------------------------------------------------------------------------- OpenAI's client


def test_openai_chat(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, temperature=0, max_tokens=20, logprobs=True, top_logprobs=2
    )
    choice = answer.choices[0]
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert "".join(each.token for each in choice.logprobs.content) == choice.message.content
    assert len(choice.logprobs.content[0].top_logprobs) == 2


def test_openai_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ASKED, temperature=0, max_tokens=20)
    with client.chat.completions.create(
        model=MODEL, messages=ASKED, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
    ) as stream:
        pieces = list(stream)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == whole.choices[0].message.content
    assert pieces[-2].choices[0].finish_reason == "stop"
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_limits_and_stops(client: openai.OpenAI) -> None:
    cut = client.chat.completions.create(model=MODEL, messages=ASKED, temperature=0, max_completion_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)
    stopped = client.chat.completions.create(model=MODEL, messages=ASKED, temperature=0, stop=["Paris"])
    assert "Paris" not in stopped.choices[0].message.content
    drawn = {
        client.chat.completions.create(model=MODEL, messages=ASKED, temperature=2, seed=7, max_tokens=8)
        .choices[0]
        .message.content
        for _ in range(2)
    }
    assert len(drawn) == 1


def test_openai_several_answers(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "temperature": 2, "seed": 7, "max_tokens": 8}
    one = client.chat.completions.create(**asked, messages=ASKED)
    both = client.chat.completions.create(**asked, messages=ASKED, n=2)
    assert [each.index for each in both.choices] == [0, 1]
    assert both.choices[0].message.content != both.choices[1].message.content
    assert both.usage.prompt_tokens == one.usage.prompt_tokens
    assert both.usage.completion_tokens > one.usage.completion_tokens
    with client.chat.completions.create(
        **asked, messages=ASKED, n=2, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *pieces, last = stream
    told = ["", ""]
    for piece in pieces:
        told[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert len(set(told)) == 2
    assert last.usage.completion_tokens > one.usage.completion_tokens
    with client.completions.create(
        model=MODEL, prompt=["The sky is", "The sea is"], n=2, max_tokens=4, temperature=0, logprobs=1, stream=True
    ) as texts:
        choices = [piece.choices[0] for piece in texts]
    assert sorted({each.index for each in choices}) == [0, 1, 2, 3]
    for index in range(4):
        starts = [at for each in choices if each.index == index and each.logprobs for at in each.logprobs.text_offset]
        assert starts == sorted(set(starts))
        assert len(starts) == 4


def test_penalties_change_what_is_drawn(client: openai.OpenAI, other: ollama.Client) -> None:
    words = [{"role": "user", "content": "Repeat the word 'no' a hundred times."}]
    plain, presence, frequency = (
        client.chat.completions.create(model=MODEL, messages=words, temperature=0, max_tokens=40, **more)
        .choices[0].message.content
        for more in ({}, {"presence_penalty": 9}, {"frequency_penalty": 2})
    )  # fmt: skip
    assert len({plain, presence, frequency}) == 3
    greedy = {"temperature": 0, "num_predict": 40}
    for options, same in (
        ({"presence_penalty": 9}, presence),
        ({"presence_penalty": 9, "repeat_last_n": 0}, plain),
        ({"frequency_penalty": 2}, frequency),
        ({"frequency_penalty": 2, "repeat_last_n": -1}, frequency),
    ):
        assert other.chat(model=MODEL, messages=words, options={**greedy, **options}).message.content == same


def test_openai_structured_output(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Make up a person."}]
    made = client.chat.completions.parse(
        model=MODEL, messages=messages, response_format=Person, temperature=0, max_tokens=100
    )
    assert isinstance(made.choices[0].message.parsed, Person)


def test_openai_tools(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    made = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=40
    )
    call = made.choices[0].message.tool_calls[0]
    assert made.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    named = {"type": "function", "function": {"name": "get_weather"}}
    with client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice=named, temperature=0, stream=True
    ) as stream:
        deltas = [each for piece in stream for each in piece.choices[0].delta.tool_calls or ()]
    assert deltas[0].function.name == "get_weather"
    assert json.loads("".join(each.function.arguments for each in deltas))["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 °C"}
    after = client.chat.completions.create(
        model=MODEL,
        messages=[*messages, made.choices[0].message.to_dict(), result],
        tools=[WEATHER],
        temperature=0,
        max_tokens=30,
    )
    assert after.usage.prompt_tokens > made.usage.prompt_tokens


def test_tools_beside_a_schema(client: openai.OpenAI, other: ollama.Client) -> None:
    turns: list[Any] = [{"role": "user", "content": "Make up a person."}]
    schema = Person.model_json_schema()
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    said = client.chat.completions.create(
        model=MODEL, messages=turns, tools=[WEATHER], response_format=form, temperature=0, max_tokens=120
    ).choices[0].message  # fmt: skip
    assert said.tool_calls or Person.model_validate_json(said.content)
    options = {"temperature": 0, "num_predict": 120}
    told = other.chat(model=MODEL, messages=turns, tools=[WEATHER], format=schema, options=options).message
    assert told.tool_calls or Person.model_validate_json(told.content)


def test_results_are_told_in_the_order_of_their_calls() -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": each, **call} for each in ("a", "b")]},
        {"role": "tool", "tool_call_id": "b", "content": "second"},
        {"role": "tool", "tool_call_id": "a", "content": "first"},
        {"role": "user", "content": "Thanks."},
    ]
    asked = ollama_requests.ChatRequest(model=MODEL, messages=turns)  # LangChain and LiteLLM send ids there, too
    for found in (
        requests.conversation([requests.ChatMessage(**turn) for turn in turns]),
        ollama_requests.chat_messages(asked),
    ):
        assert [each.content for each in found[2:]] == ["first", "second", "Thanks."]
        assert [each.name for each in found[2:]] == ["get_weather", "get_weather", ""]
    asked.messages = [turn.model_copy(update={"tool_call_id": None}) for turn in asked.messages or ()]
    for call in asked.messages[1].tool_calls or ():
        del call["id"]
    found = ollama_requests.chat_messages(asked)
    assert [(each.content, each.name) for each in found[2:4]] == [("second", ""), ("first", "")]


def test_ids_that_each_turn_counts_anew_name_the_call_of_their_own_turn() -> None:
    turns: list[dict[str, Any]] = []
    for name in ("get_weather", "get_time"):
        call = {"id": "call_0", "type": "function", "function": {"name": name, "arguments": "{}"}}
        turns += [{"role": "assistant", "content": None, "tool_calls": [call]},
                  {"role": "tool", "tool_call_id": "call_0", "content": "done"}]  # fmt: skip
    found = requests.conversation([requests.ChatMessage(**turn) for turn in turns])
    assert [each.name for each in found if each.role == "tool"] == ["get_weather", "get_time"]


def test_a_tool_that_is_no_schema_is_refused_and_harms_nobody(client: openai.OpenAI) -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}}
    for schema in (deep, {"type": "object", "required": [["a"]]}):
        tool: Any = {"type": "function", "function": {"name": "f", "parameters": schema}}
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="smollm2-135m", messages=ASKED, tools=[tool], tool_choice="required"  # type: ignore[arg-type]
            )  # fmt: skip
    assert client.chat.completions.create(model="smollm2-135m", messages=ASKED, max_tokens=2).choices  # type: ignore[arg-type]


def test_calls_whose_arguments_are_nested_too_deep_are_refused(client: openai.OpenAI, server: Running) -> None:
    deep = "[" * 600 + "]" * 600
    for path in ("/v1/chat/completions", "/api/chat"):
        for arguments in (f'{{"a": {deep}}}', json.dumps(f'{{"a": {deep}}}')):
            call = f'{{"type": "function", "function": {{"name": "f", "arguments": {arguments}}}}}'
            turns = f'[{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "tool_calls": [{call}]}}]'
            status, told = ask(server, path, f'{{"model": "{MODEL}", "messages": {turns}, "max_tokens": 1}}'.encode())
            assert (status, "nested" in str(told)) == (400, True), told


def test_images_are_counted_before_they_are_decoded(server: Running) -> None:
    bad = "x" * 17
    parts = [{"type": "image_url", "image_url": {"url": "x"}} for _ in bad]
    turn = {"role": "user", "content": "What is it?"}
    for path, asked in (
        ("/v1/chat/completions", {"messages": [{**turn, "content": parts}]}),
        ("/api/chat", {"messages": [{**turn, "images": list(bad)}]}),
        ("/api/generate", {"prompt": "What is it?", "images": list(bad)}),
    ):
        status, told = ask(server, path, json.dumps({"model": MODEL, **asked}).encode())
        assert (status, "more than 16 images" in str(told)) == (400, True), told


def test_openai_completions_and_embeddings(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=3)
    assert "Paris" in text.choices[0].text
    made = client.embeddings.create(model=MODEL, input=["a cat", "a dog"])
    assert [each.index for each in made.data] == [0, 1]
    plain = client.embeddings.create(model=MODEL, input="a cat", encoding_format="float")
    assert made.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)


def test_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nosuch", messages=ASKED)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 5000}])
    assert long.value.code == "context_length_exceeded"
    bounded = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}
    for wrong in (
        {"n": 17},
        {"temperature": -1},
        {"tool_choice": "required"},
        {"response_format": bounded},
        {"messages": seeing("https://pictures.example/a.png")},
        {"messages": seeing(f"data:image/png;base64,{PIXEL}")},
    ):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**{"model": MODEL, "messages": ASKED, "max_tokens": 1, **wrong})


def test_a_picture_for_a_blind_model_is_refused(client: openai.OpenAI) -> None:
    made = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(made, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(made.getvalue()).decode()}"
    with pytest.raises(openai.BadRequestError, match="projector"):
        client.chat.completions.create(model=MODEL, messages=seeing(url))


def seeing(url: str) -> list[Any]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


# ----------------------------------------------------------------------------------------------- Ollama's client


@pytest.fixture
def other(server: Running) -> Iterator[ollama.Client]:
    client = ollama.Client(host=server.url)
    yield client
    client._client.close()


def test_ollama(other: ollama.Client) -> None:
    client = other
    assert [model.model for model in client.list().models] == [MODEL]
    greedy = {"temperature": 0, "num_predict": 20}
    answer = client.chat(model=MODEL, messages=ASKED, options=greedy)
    assert "Paris" in answer.message.content
    assert answer.done_reason == "stop"
    assert answer.eval_count > 0
    pieces = list(client.chat(model=MODEL, messages=ASKED, options=greedy, stream=True))
    assert "".join(piece.message.content for piece in pieces) == answer.message.content
    assert pieces[-1].done
    assert "Paris" in client.generate(model=MODEL, prompt=ASKED[0]["content"], options=greedy).response
    assert len(client.generate(model=MODEL, prompt="The sky is", raw=True, options={"num_predict": 2}).response) > 0
    assert MODEL in [model.model for model in client.ps().models]
    assert client.show(MODEL).details.quantization_level == "Q4_1"


def test_ollama_logprobs(other: ollama.Client) -> None:
    greedy = {"temperature": 0, "num_predict": 8}
    told = other.chat(model=MODEL, messages=ASKED, options=greedy, logprobs=True, top_logprobs=2)
    assert "".join(each.token for each in told.logprobs) == told.message.content
    assert len(told.logprobs[0].top_logprobs) == 2
    pieces = list(other.generate(model=MODEL, prompt="Hi", options=greedy, logprobs=True, stream=True))
    assert "".join(each.token for piece in pieces for each in piece.logprobs or ()) == "".join(
        piece.response for piece in pieces
    )
    assert other.chat(model=MODEL, messages=ASKED, options=greedy).logprobs is None
    with pytest.raises(ollama.ResponseError, match="raw"):
        other.generate(model=MODEL, prompt="Hi", raw=True, images=[b"x"])


def test_what_a_model_can_is_told_from_its_header(other: ollama.Client) -> None:
    told = other.show(MODEL)
    assert told.capabilities == ["completion"]
    assert told.details.family == told.modelinfo["general.architecture"] == "llama"


def test_ollama_embeddings_format_and_tools(other: ollama.Client) -> None:
    client = other
    made = client.embed(model=MODEL, input=["a cat", "a dog"]).embeddings
    old = client.embeddings(model=MODEL, prompt="a cat").embedding
    assert list(made[0]) == pytest.approx(list(old), abs=1e-6)
    text = client.chat(
        model=MODEL,
        messages=[{"role": "user", "content": "Make up a person."}],
        format=Person.model_json_schema(),
        options={"temperature": 0, "num_predict": 100},
    ).message.content
    assert Person.model_validate_json(text)
    told = client.chat(model=MODEL, messages=ASKED, tools=[WEATHER], options={"temperature": 0, "num_predict": 30})
    assert told.message.content or told.message.tool_calls
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat(model="nosuch", messages=ASKED)
    assert missing.value.status_code == 404


def test_clients_that_look_whether_it_is_there(server: Running) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        request = urllib.request.Request(server.url + path, method="HEAD")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert (answer.status, answer.read()) == (200, b"")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/api/chat", method="PUT"), timeout=30)
    with refused.value as error:
        assert (error.code, error.headers["allow"]) == (405, "POST")


def test_durations_are_of_the_request(other: ollama.Client) -> None:
    for told in (
        other.chat(model=MODEL, messages=ASKED, options={"num_predict": 4}),
        list(other.generate(model=MODEL, prompt="Hi", options={"num_predict": 4}, stream=True))[-1],
    ):
        parts = told.load_duration + told.prompt_eval_duration + told.eval_duration
        assert 0 < told.eval_duration < parts <= told.total_duration + 3  # of each the last digit may be cut
    embedded = other.embed(model=MODEL, input="a cat")
    assert 0 <= embedded.load_duration < embedded.total_duration


def test_a_file_that_only_embeds_is_served_and_listed(tmp_path: Path) -> None:
    file = tmp_path / "bert.gguf"
    vector_models.bert(file, context=64)
    long = "a cat " * 500

    def asked(path: str, **content: Any) -> Any:
        body = json.dumps(content).encode() if content else None
        with urllib.request.urlopen(urllib.request.Request(f"{running.url}{path}", body), timeout=60) as answer:
            return json.load(answer)

    with serving(tmp_path / "home", "--port", "0", "-m", str(file)) as running:
        name = asked("/v1/models")["data"][0]["id"]
        assert name == asked("/api/tags")["models"][0]["name"] != MODEL
        assert len(asked("/v1/embeddings", model=name, input="a cat")["data"][0]["embedding"]) == 64
        assert asked("/api/embed", model=name, input=long)["prompt_eval_count"] == 64
        shown = asked("/api/show", model=name)
        assert (shown["capabilities"], shown["details"]["family"]) == (["embedding"], "bert")
        assert asked("/api/embed", model=name, input="")["embeddings"] == []
        whole = asked("/api/embed", model=name, input="a cat")["embeddings"][0]
        (short,) = asked("/api/embed", model=name, input="a cat", dimensions=8)["embeddings"]
        assert short == pytest.approx([each / math.hypot(*whole[:8]) for each in whole[:8]])
        told = asked("/v1/embeddings", model=name, input="a cat", dimensions=8)["data"][0]["embedding"]
        assert told == pytest.approx(short)
        for wrong in ({"input": long, "truncate": False}, {"input": ["a", ""]}, {"input": "a", "dimensions": 65}):
            with pytest.raises(urllib.error.HTTPError) as refused:
                asked("/api/embed", model=name, **wrong)
            assert refused.value.code == 400
            refused.value.close()


# ------------------------------------------------------------------------------------------------------ security


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "192.168.1.9"},
        {"Host": "127.0.0.1:x"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_foreign_hosts_and_pages_are_refused(server: Running, headers: dict[str, str]) -> None:
    for path in ("/v1/models", "/api/tags", "/metrics"):
        assert ask(server, path, None, headers)[0] == 403
    assert ask(server, "/api/chat", b"{}", {**headers, "Content-Type": "text/plain"})[0] == 403


def test_our_own_names_are_taken(server: Running) -> None:
    for host in ("localhost", f"localhost:{server.port}", "[::1]:80", "127.0.0.1"):
        assert ask(server, "/health", None, {"Host": host})[0] == 200
    assert ask(server, "/health", None, {"Origin": server.url})[0] == 200


def test_bad_bodies_are_refused_in_the_right_form(server: Running) -> None:
    status, told = ask(server, "/v1/chat/completions", b"{bad")
    assert (status, told["error"]["type"]) == (400, "invalid_request_error")
    status, told = ask(server, "/api/chat", b"\xff\xfe")
    assert (status, set(told)) == (400, {"error"})
    assert ask(server, "/api/chat", json.dumps({"model": f"{Path(__file__)}", "messages": ASKED}).encode())[0] == 404
    for path, body, status, hint in (
        ("/v1/responses", b"{}", 404, "docs/server.md"),
        ("/api/pull", b'{"model": "x"}', 404, "localai pull"),
        ("/v1/models", b"{}", 405, "docs/server.md"),
    ):
        found, told = ask(server, path, body)
        assert (found, f"POST {path}" in str(told), hint in str(told)) == (status, True, True), told
    # Ollama's own documentation asks without a content type
    body = json.dumps({"model": MODEL, "messages": ASKED, "stream": False, "options": {"num_predict": 1}}).encode()
    assert ask(server, "/api/chat", body, {"Content-Type": "application/x-www-form-urlencoded"})[0] == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n{")
        assert b"413" in connection.recv(4096).split(b"\r\n")[0]


def test_a_body_that_tells_no_length_is_counted_as_it_comes(server: Running) -> None:
    chunk = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):  # it need not read to the end
            connection.sendall(chunk * 33)
        assert b"413" in connection.recv(4096).split(b"\r\n")[0]


def guarded(
    headers: Mapping[str, str], method: str = "POST", drips: int = 1, key: str | None = None
) -> tuple[int, dict[str, str]]:
    """What an application behind the guard answers to a body that comes a byte a millisecond: status and headers."""
    sent: list[Any] = []
    left = list(range(drips))

    async def receive() -> Any:
        await asyncio.sleep(0.001)
        left.pop()
        return {"type": "http.request", "body": b" ", "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive()).get("more_body"):
            pass
        status = 200 if message["type"] == "http.request" else 400
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    rules = security.Rules("127.0.0.1", key, frozenset({PAGE}))
    raw = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    scope = {"type": "http", "method": method, "path": "/v1/models", "headers": raw}
    asyncio.run(security.Guard(app, rules)(scope, receive, send))
    assert [each["type"] for each in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_a_body_that_drips_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert guarded({}, drips=2)[0] == 200
    monkeypatch.setattr(security, "BODY_LIMIT_S", 0.05)
    assert guarded({}, drips=1000)[0] == 408


def test_what_is_refused_is_counted_as_what_it_is(server: Running) -> None:
    def counted(status: int) -> float:
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if f'status="{status}"' in line)

    before = {status: counted(status) for status in (403, 413)}
    ask(server, "/v1/models", None, {"Host": "evil.example"})
    test_a_body_that_tells_no_length_is_counted_as_it_comes(server)
    assert {status: counted(status) for status in before} == {403: before[403] + 1, 413: before[413] + 1}


def test_names_are_labels_that_prometheus_reads() -> None:
    assert app.label('é\\"\n') == '"é\\\\\\"\\n"'


def test_a_connection_that_asks_nothing_in_time_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nothing was asked")

    async def talk() -> list[bytes]:
        config = uvicorn.Config(nothing, http=connections.Connection, ws="none", log_config=None)
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: connections.Connection(config, state, {}), "127.0.0.1", 0)
        read = []
        async with listening:
            for begun in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n"):
                reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
                writer.write(begun)
                read.append(await asyncio.wait_for(reader.read(), 30))
                writer.close()
        return read

    monkeypatch.setattr(connections, "HEAD_LIMIT_S", 0.05)
    assert asyncio.run(talk()) == [b"", b""]


def test_a_page_that_may_ask_can_read_what_it_is_told() -> None:
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    status, told = guarded(asked, "OPTIONS", key="k")
    assert (status, told["access-control-allow-origin"]) == (204, PAGE)
    assert told["access-control-allow-headers"] == asked["access-control-request-headers"]
    for status, more, key in ((401, {}, "k"), (413, {"content-length": "99999999999"}, None), (200, {}, None)):
        found, told = guarded({"origin": PAGE, **more}, key=key)
        assert (found, told["access-control-allow-origin"]) == (status, PAGE)
    status, told = guarded({**asked, "origin": "https://evil.example"}, "OPTIONS")
    assert (status, "access-control-allow-origin" in told) == (403, False)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(server: Running, stream: bool) -> None:
    before = server.metric("answers_interrupted_total")
    body = json.dumps({**LONG, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + body)
        while server.metric("answers_under_way") < 1:
            pass
    while server.metric("answers_under_way") > 0:
        pass
    assert server.metric("answers_interrupted_total") == before + 1
    assert ask(server, "/health")[0] == 200


def test_an_answer_whose_model_is_let_go_is_no_whole_one(
    client: openai.OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALAI_HOME", str(server.home))
    with client.chat.completions.create(**LONG, stream=True) as stream:
        assert next(stream).choices
        warm.ask({"do": "stop", "model": MODEL}, 60)
        with pytest.raises(openai.APIError, match="let go"):
            list(stream)


def test_a_server_that_ends_tells_whom_it_cuts_off(tmp_path: Path) -> None:
    body = json.dumps(LONG).encode()
    with (
        serving(tmp_path, "--port", "0", "--context", "2048", "--parallel", "1") as ending,
        openai.OpenAI(base_url=f"{ending.url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor() as pool,
    ):
        with client.chat.completions.create(**LONG, stream=True) as stream:
            assert next(stream).choices
            waiting = pool.submit(ask, ending, "/v1/chat/completions", body)
            while ending.metric("answers_under_way") < 2:
                pass
            ending.process.send_signal(signal.SIGINT)
            with pytest.raises(openai.APIError, match="let go"):
                list(stream)
        status, told = waiting.result(60)
        assert (status, told["error"]["code"]) == (503, "engine_closed")
        assert ending.process.wait(60) == 130
        assert ending.process.stderr is not None
        assert ending.process.stderr.read() == b""


def test_keep_alive_0_lets_go_once_nobody_is_answered(
    client: openai.OpenAI, other: ollama.Client, server: Running
) -> None:
    with client.chat.completions.create(**LONG, stream=True) as stream:
        assert next(stream).choices
        other.generate(model=MODEL, keep_alive=0)
        for piece in itertools.islice(stream, 20):
            assert piece.choices[0].finish_reason is None
        assert other.ps().models
    while other.ps().models:
        pass


def test_off_loopback_a_key_is_needed(tmp_path: Path) -> None:
    with serving(tmp_path, "--port", "0", "--host", "0.0.0.0", "--context", "512", "--parallel", "1") as running:
        file = tmp_path / "data" / "api-key"
        assert file.stat().st_mode & 0o777 == 0o600
        local = Running(f"http://127.0.0.1:{running.port}", running.pid, running.home, running.process)
        key = file.read_text().strip()
        for wrong in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": f"Basic {key}"},
            {"Authorization": "Bearer é"},
        ):
            assert ask(local, "/v1/models", None, wrong)[0] == 401
        assert ask(local, "/v1/models", None, {"Authorization": f"Bearer {key}"})[0] == 200
        assert ask(local, "/v1/models", None, {"Authorization": f"Bearer {key}", "Host": "evil.example"})[0] == 403
        assert ask(local, "/health")[0] == 200


# ------------------------------------------------------------------------------------------------ the command itself


def test_a_taken_port_is_told_in_a_line(cli: Cli, server: Running) -> None:
    result = cli("serve", "--port", str(server.port))
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == f"error: port {server.port} is taken by another program"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", [("--host", "no such host"), ("--allow-origin", "*"), ("--keep-alive", "soon")])
def test_wrong_usage(cli: Cli, words: tuple[str, ...]) -> None:
    assert cli("serve", "--port", "0", *words).returncode == 2


def test_without_the_extra_it_says_what_to_install(isolated: Path) -> None:
    script = (
        "import sys; sys.modules['fastapi'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'fastapi' else real(name, *rest)\n"
        "sys.argv = ['localai', 'serve', '--port', '0']\n"
        "from localai.__main__ import main; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=os.environ)
    assert result.returncode == 2
    assert "pip install fastapi uvicorn" in result.stderr
