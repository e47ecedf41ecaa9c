"""Templates in the styles of the well-known models render as they should, hostile ones are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import random_models
from real_model import plan

from localai.domain.generation import Message, Tool, ToolCall
from localai.engine import model
from localai.engine.rendering import Renderer, TemplateEndless, TemplateFailed
from localai.engine.templates import ChatTemplate, merge_system, plain
from localai.engine.tools import GRANITE, HERMES, LFM, Form

SYSTEM, HELLO = Message("system", "Be brief."), Message("user", "Hello")
TALK = [SYSTEM, HELLO, Message("assistant", "Hi!"), Message("user", "Bye")]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
QWEN3 = """{%- set ns = namespace(last_query_index=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and not ns.found %}{%- set ns.found = true %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate') }}{% endif %}
{%- if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""
MISTRAL = """{{ bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{%- generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}
{%- endif %}
{%- endfor %}"""


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    made = Renderer()
    yield made
    made.close()


def rendered(renderer: Renderer, source: str, messages: list[Message], think: bool | None = None) -> str:
    notices: list[str] = []
    template = ChatTemplate(source, renderer, bos="<s>", eos="</s>", notice=notices.append)
    text = template.render(messages, think).text
    assert notices == []
    return text


def test_chatml(renderer: Renderer) -> None:
    assert rendered(renderer, CHATML, TALK[:2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama_3_trims_and_tells_the_date(renderer: Renderer) -> None:
    text = rendered(renderer, LLAMA3, [SYSTEM, Message("user", "  Hello \n")])
    assert text.startswith("<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: ")
    assert text.endswith(
        "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_qwen_3_thinks_unless_told_not_to(renderer: Renderer) -> None:
    assert rendered(renderer, QWEN3, [HELLO]).endswith("<|im_start|>assistant\n")
    assert rendered(renderer, QWEN3, [HELLO], True).endswith("<|im_start|>assistant\n")
    assert rendered(renderer, QWEN3, [HELLO], False).endswith("<think>\n\n</think>\n\n")
    before = Message("assistant", "<think>\nHm.\n</think>\n\nHi!")
    assert "Hm." not in rendered(renderer, QWEN3, [HELLO, before, HELLO])


def test_gemma_refuses_a_system_role_and_gets_it_in_the_first_turn(renderer: Renderer) -> None:
    assert rendered(renderer, GEMMA, TALK) == (
        "<s><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\nHi!<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )


def test_mistral_leaves_the_system_role_out_and_gets_it_in_the_first_turn(renderer: Renderer) -> None:
    assert rendered(renderer, MISTRAL, TALK) == "<s>[INST] Be brief.\n\nHello [/INST] Hi!</s>[INST] Bye [/INST]"


def test_tojson_keeps_letters_and_markup_and_loops_can_break(renderer: Renderer) -> None:
    source = "{% for m in messages %}{{ m.content|tojson }}{% if loop.index == 1 %}{% break %}{% endif %}{% endfor %}"
    assert rendered(renderer, source, [Message("user", 'é <b> "'), Message("user", "<b>")]) == '"é <b> \\""'
    assert rendered(renderer, "{{ {'b': [1]}|tojson(indent=2) }}Hello", [HELLO]) == '{\n  "b": [\n    1\n  ]\n}Hello'


HEAD = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}"
FOOT = "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
RESULT = "{% elif m.role == 'tool' %}{{ m.name }} {{ m.tool_call_id }} {{ m.content|tojson }}\n"
EACH = "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.id }} {{ c.function|tojson }}\n{% endfor %}"
ONE = "{% if m.tool_calls %}{{ m.tool_calls[0].function|tojson }}\n"
STRICT = "{% if m.tool_calls|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
CALLED = [
    HELLO,
    Message("assistant", "", (), (ToolCall("sun", '{"x": "é"}'), ToolCall("moon", '{"y": [true, {"a": null}]}'))),
    Message("tool", '{"t": "ü"}\n', name="moon"),
    Message("tool", "2"),
]
TOOLS = [Tool(name, "", {"type": "object"}) for name in ("sun", "moon")]


def test_calls_have_ids_and_their_results_the_same(renderer: Renderer) -> None:
    made = ChatTemplate(HEAD + EACH + RESULT + FOOT, renderer, tool_form=HERMES).render(CALLED, tools=TOOLS)
    assert made.text.splitlines() == [
        "sun moon user: Hello",
        'call00000 {"name": "sun", "arguments": {"x": "é"}}',
        'call00001 {"name": "moon", "arguments": {"y": [true, {"a": null}]}}',
        r'moon call00001 "{\"t\": \"ü\"}\n"',
        'sun call00000 "2"',
    ]
    assert not made.in_words


@pytest.mark.parametrize("strict", ["", STRICT])
def test_where_a_turn_has_room_for_one_call_each_has_its_own(renderer: Renderer, strict: str) -> None:
    made = ChatTemplate(HEAD + strict + ONE + RESULT + FOOT, renderer, tool_form=HERMES).render(CALLED, tools=TOOLS)
    assert made.text.splitlines() == [
        "sun moon user: Hello",
        '{"name": "sun", "arguments": {"x": "é"}}',
        'sun call00000 "2"',
        '{"name": "moon", "arguments": {"y": [true, {"a": null}]}}',
        r'moon call00001 "{\"t\": \"ü\"}\n"',
    ]
    assert not made.in_words


@pytest.mark.parametrize(
    ("form", "calls"),
    [
        (LFM, '<|tool_call_start|>[sun(x="é"), moon(y=[True, {"a": None}])]<|tool_call_end|>'),
        (
            GRANITE,
            '<|tool_call|>[{"name": "sun", "arguments": {"x": "é"}},'
            ' {"name": "moon", "arguments": {"y": [true, {"a": null}]}}]',
        ),
    ],
)
def test_a_template_without_calls_gets_them_in_the_text(renderer: Renderer, form: Form, calls: str) -> None:
    source = HEAD + "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    made = ChatTemplate(source, renderer, tool_form=form).render(CALLED, tools=TOOLS)
    assert f"\nassistant: {calls}\n" in made.text
    assert not made.in_words


def test_a_system_text_that_is_shown_before_a_question_only_goes_into_one(renderer: Renderer) -> None:
    source = HEAD + "{% if m.role == 'system' %}" + EACH.replace("{% if", "{% elif", 1) + RESULT + FOOT
    made = ChatTemplate(source, renderer, tool_form=HERMES).render([SYSTEM, *CALLED], tools=TOOLS)
    assert made.text.startswith("sun moon user: Be brief.\n\nHello\ncall00000")
    assert not made.in_words


@pytest.mark.parametrize(("source", "form"), [(CHATML, HERMES), (GEMMA, HERMES), (HEAD + EACH + RESULT + FOOT, None)])
def test_tools_that_a_template_leaves_out_or_calls_otherwise_are_told_in_words(
    renderer: Renderer, source: str, form: Form | None
) -> None:
    notices: list[str] = []
    made = ChatTemplate(source, renderer, tool_form=form, notice=notices.append).render(CALLED, tools=TOOLS)
    assert made.in_words
    assert '<tool_call>{"name": "sun", "arguments": {"x": "é"}}</tool_call>' in made.text
    assert '<tool_response>{"t": "ü"}\n</tool_response>\n<tool_response>2</tool_response>' in made.text
    assert notices == []


def test_what_a_template_counts_on_is_there_without_tools_or_documents(renderer: Renderer) -> None:
    source = "{% if tools is not none or documents is not none %}tools!{% endif %}{{ messages[-1].content|tojson }}"
    assert rendered(renderer, source, [Message("user", '"so"')]) == r'"\"so\""'
    source = "{% for t in tools %}{{ t }}{% endfor %}{{ messages[-1].content }}"  # for conversations with tools alone
    assert rendered(renderer, source, [HELLO]) == "Hello"


def test_content_is_data_and_never_template(renderer: Renderer) -> None:
    assert "{{ 7 * 7 }}{% raw %}" in rendered(renderer, CHATML, [Message("user", "{{ 7 * 7 }}{% raw %}")])


FAILING = [
    "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''.__class__.__base__ }}",
    "{{ raise_exception.__globals__['sys'].exit() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{% if %}",
    "{{ messages[99].content }}",
    "{{ 1 / 0 }}",
    "{% include '/etc/passwd' %}",
    "{{ messages.append(1) }}",
    "{% for i in range(10**12) %}{% endfor %}",
    "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ 'x' * 10**11 }}",
    "{% for i in range(100) %}{{ 'x' * 100000 }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 'a prompt in which nobody asks anything' }}",
    "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}",
]


@pytest.mark.parametrize("source", FAILING)
def test_a_bad_template_is_announced_and_a_plain_form_used(renderer: Renderer, source: str) -> None:
    notices: list[str] = []
    template = ChatTemplate(source, renderer, notice=notices.append)
    for _ in range(2):
        assert template.render(TALK) == plain(TALK, chatml=False)
    assert len(notices) == 1
    assert "plain" in notices[0]


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{{ 7 ** (7 ** 12) }}",
    ],
)
def test_a_template_without_end_is_killed(source: str) -> None:
    renderer = Renderer(time_limit_s=0.3)
    process = renderer._process
    assert process is not None
    with pytest.raises(TemplateFailed, match=r"more than 0\.3 s"):
        renderer.render(source, {}, 100)
    assert process.returncode is not None
    renderer._time_limit_s = 60
    assert renderer.render("another", {}, 100) == "another"
    renderer.close()
    with pytest.raises(TemplateFailed):
        renderer.render("closed", {}, 100)


class Busy(Renderer):
    """Takes too long where the list says so, and fails where that has None."""

    def __init__(self, late: list[bool | None]) -> None:
        self._late = iter(late)
        self.asked = 0

    def render(self, template: str, variables: dict[str, Any], limit: int) -> str:
        self.asked += 1
        if late := next(self._late):
            raise TemplateEndless("it takes more than 5 s")
        if late is None:
            raise TemplateFailed("it cannot")
        return "Hello"


def test_a_template_without_end_is_not_tried_again_and_again() -> None:
    renderer = Busy([True, False, True, True])
    template = ChatTemplate("x", renderer)
    made = []
    for _ in range(6):
        made.append(template.render([HELLO]).text)
        template.next_request()
    form = plain([HELLO], chatml=False).text
    assert made == [form, "Hello", form, form, form, form]
    assert renderer.asked == 4
    assert template.without_opening([HELLO]) is None


def test_a_template_that_stalls_is_waited_for_once_a_request() -> None:
    renderer = Busy([True, False, False])
    template = ChatTemplate("x", renderer)
    for messages in (TALK, TALK[2:], TALK[:2]):  # a system text may be merged, and turns dropped
        assert template.render(messages) == plain(messages, chatml=False)
        assert template.without_opening(messages) is None
    assert renderer.asked == 1
    template.next_request()
    assert template.render([HELLO]).text == template.without_opening([HELLO]) == "Hello"


def test_a_template_that_fails_with_some_variables_and_stalls_without_them_is_given_up_too() -> None:
    renderer = Busy([None, True, None, True])
    template = ChatTemplate("x", renderer)
    for _ in range(4):
        assert template.render(TALK) == plain(TALK, chatml=False)
        template.next_request()
    assert renderer.asked == 4


@pytest.mark.skipif(os.name == "nt", reason="Windows has no alarm")
def test_a_renderer_whose_parent_was_killed_ends_by_itself() -> None:
    script = "from localai.engine import renderer; renderer.TIME_LIMIT_S = 1; renderer.main()"
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}" + "{% endfor %}" * 3
    request = {"number": 1, "template": endless, "variables": {}, "limit": 9}
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(request), text=True, timeout=60)
    assert done.returncode == -signal.SIGALRM


def test_a_second_template_is_for_conversations_with_tools(tmp_path: Path) -> None:
    for_tools = HEAD + EACH + RESULT + FOOT + "{# <tool_call> #}"
    path = random_models.write(tmp_path, random_models.TINY["plain"], tool_template=for_tools)
    engine = model.load(path, plan(1024))
    made = [engine._prompts.prompt(talk, None, tools=tools).text for talk, tools in ((TALK, ()), (CALLED, TOOLS))]
    assert made[0].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert made[1].startswith("sun moon user: Hello\ncall00000 ")
    engine.close()
    path = random_models.write(tmp_path, random_models.TINY["plain"], template="", tool_template=for_tools)
    engine = model.load(path, plan(1024))
    assert engine._prompts.prompt(TALK, None).text.startswith("system: Be brief.\nuser: Hello\n")
    engine.close()


def test_nothing_said_is_rendered(renderer: Renderer) -> None:
    assert rendered(renderer, CHATML, []) == "<|im_start|>assistant\n"


def test_one_conversation_that_is_refused_keeps_no_other_from_the_template(renderer: Renderer) -> None:
    notices: list[str] = []
    template = ChatTemplate(GEMMA, renderer, bos="<s>", notice=notices.append)
    for _ in range(2):
        assert template.render([HELLO, HELLO]) == plain([HELLO, HELLO], chatml=False)
    assert template.render([HELLO]).text.startswith("<s><start_of_turn>user")
    assert len(notices) == 1


def test_an_answer_that_nobody_waited_for_is_dropped(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(limit_s: float) -> dict[str, Any]:
        raise KeyboardInterrupt

    renderer.render("ready", {}, 100)
    with monkeypatch.context() as patch:
        patch.setattr(renderer, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            renderer.render("one", {}, 100)
    assert renderer.render("other", {}, 100) == "other"


def test_no_template_uses_chatml_where_the_model_knows_it(renderer: Renderer) -> None:
    notices: list[str] = []
    template = ChatTemplate(None, renderer, chatml=True, notice=notices.append)
    assert template.render([HELLO]).text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert notices == ["the model has no chat template: a plain ChatML form is used, answers may be worse"]


def test_the_plain_form_stops_where_the_model_would_go_on_for_the_user() -> None:
    made = plain(TALK, chatml=False)
    assert made.text == "Be brief.\n\nUser: Hello\n\nAssistant: Hi!\n\nUser: Bye\n\nAssistant:"
    assert "\nUser:" in made.stops


def test_a_system_text_alone_becomes_the_users() -> None:
    assert merge_system([SYSTEM]) == [Message("user", "Be brief.")]


def test_lone_surrogates_pass(renderer: Renderer) -> None:
    assert "a\udc80b" in rendered(renderer, CHATML, [Message("user", "a\udc80b")])
