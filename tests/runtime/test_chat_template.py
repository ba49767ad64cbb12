"""Chat templates: the text of transformers, and nothing that gets out of the sandbox."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest

from penstock.errors import PenstockError, UsageError
from penstock.runtime.chat_template import (
    MAX_RANGE,
    ChatTemplate,
    ChatTemplateError,
    render_chat,
)

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who <are> you? 😀"},
    {"role": "assistant", "content": "  A model.\n"},
    {"role": "user", "content": 'Say "hi"'},
]

CHATML = """\
{% for message in messages %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}\
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}\
{% endif %}"""

LLAMA2 = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Roles must alternate') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim -}}
        {{- ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + message['content'] | trim + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}"""

BUSY = """\
{%- macro show(m) %}{{ m.role | upper }}={{ m.content | tojson }};{% endmacro %}
{%- set ns = namespace(seen=0, names=[]) %}
{%- for m in messages if m.role != 'system' %}
{%- if loop.index > 2 %}{% break %}{% endif %}
{%- set ns.seen = ns.seen + 1 %}
{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }} {{ show(m) }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}
{%- endfor %}
{{ ns.seen }} {{ range(3) | list }} {{ tools is none }} {{ documents is defined }}
{{ {'b': 1, 'a': [true, none, 'é<']} | tojson(indent=2) }}
{{ messages | map(attribute='role') | unique | join('+') }} {{ '=' * 5 }} {{ 1700000000 | string }}
{{ 1700000000 | replace('7', '8') }}
{%- for word in ['x', 'y'] %}{% for n in range(2) %}{% if n == 1 %}{% continue %}{% endif %}
{{ word }}{{ n }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}{% else %}none{% endfor %}
{% for item in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}
({{ item.n }}{{ loop(item.c) }}){% endfor %}
"""


@pytest.mark.parametrize("source", [CHATML, LLAMA2, BUSY])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_same_text_as_transformers(source: str, add_generation_prompt: bool) -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    [expected], _ = utilities.render_jinja_template(
        [CHAT],
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert len(expected) > 50
    assert render_chat(source, CHAT, add_generation_prompt, "<s>", "</s>") == expected


def test_apply_chat_template_of_a_tokenizer() -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    pipeline = Tokenizer(models.BPE({"<s>": 0, "</s>": 1}, []))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pipeline, bos_token="<s>", eos_token="</s>", chat_template=LLAMA2
    )
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(LLAMA2, "<s>", "</s>").render(CHAT) == expected


def test_plain_text_by_hand() -> None:
    assert ChatTemplate(CHATML).render(CHAT[1:2]) == (
        "<|im_start|>user\nWho <are> you? 😀<|im_end|>\n<|im_start|>assistant\n"
    )


def test_default_template() -> None:
    assert render_chat(None, CHAT[:2]) == ("System: Be brief.\nUser: Who <are> you? 😀\nAssistant:")
    assert render_chat(None, CHAT[:1], add_generation_prompt=False) == "System: Be brief.\n"


def test_json_is_not_escaped() -> None:
    assert render_chat(
        "{{ messages | tojson }} {{ 1700000000 | replace('7', '8') }}", CHAT[1:2]
    ) == ('[{"role": "user", "content": "Who <are> you? 😀"}] 1800000000')


def test_variables_and_time() -> None:
    template = ChatTemplate("{{ tools[0].name }} {{ strftime_now('%Y') }} {{ thinking }}")
    year = datetime.now().year
    rendered = template.render([], tools=[{"name": "f"}], thinking=False)
    assert rendered in (f"f {year} False", f"f {year + 1} False")


def test_a_template_renders_again_and_again() -> None:
    source = "{% for i in range(90000) %}{% endfor %}ok"
    template = ChatTemplate(source)
    assert [template.render([]) for _ in range(8)] == ["ok"] * 8  # the limit is per rendering


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "source, line, reason",
    [
        ("a\n{% if %}", 2, "Expected an expression"),
        ("a\nb\n{% for x in messages %}", 3, "endfor"),
        ("a\n\n{{ raise_exception('no tools here') }}", 3, "no tools here"),
        ("{% set x = 1 %}\n{{ x.y.z }}", 2, "no attribute 'y'"),
        ("\n{{ 1 // 0 }}", 2, "division"),
        ("\n{% macro f(n) %}{{ f(n) }}{% endmacro %}\n{{ f(1) }}", None, "recursion"),
        ("{{ unknown_function() }}", 1, "unknown_function"),
        ("{{ messages | nonsense }}", 1, "nonsense"),
        ("{% include '/etc/passwd' %}", 1, "loader"),
    ],
)
def test_errors_name_the_line(source: str, line: int | None, reason: str) -> None:
    with pytest.raises(ChatTemplateError, match=reason) as caught:
        render_chat(source, CHAT)
    assert isinstance(caught.value, PenstockError)
    assert line is None or caught.value.line == line
    assert line is None or f"line {line}:" in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [
        ["hi"],
        [{"content": "hi"}],
        [{"role": 1, "content": "hi"}],
        [{"role": "user"}],
        [{"role": "user", "content": object()}],
        [{"role": "user", "content": [{"image": b"x"}]}],
    ],
)
def test_wrong_messages_are_refused(messages: Any) -> None:
    with pytest.raises(UsageError, match=r"messages\[0\]"):
        render_chat(None, messages)


def test_messages_are_not_changed() -> None:
    chat: list[dict[str, Any]] = [{"role": "user", "content": "a", "tags": ["x"]}]
    with pytest.raises(ChatTemplateError, match="append"):
        render_chat("{{ messages[0].tags.append('y') }}", chat)
    assert chat == [{"role": "user", "content": "a", "tags": ["x"]}]


# ------------------------------------------------------------------ hostile templates


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages['__class__'].__base__ }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['__builtins__'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__base__}'.format(0) }}",
        "{{ ('{0.__class__}' | attr('format'))(0) }}",
        "{% for x in messages %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
        "{{ self._TemplateReference__context.environment.__class__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_the_inside_of_python_is_out_of_reach(source: str) -> None:
    try:
        rendered = render_chat(source, CHAT)
    except ChatTemplateError:
        return
    assert "class" not in rendered and "function" not in rendered and "uid=" not in rendered


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10 ** 12) %}{% endfor %}",
        f"{{{{ range({MAX_RANGE + 1}) }}}}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
        "{% set s = '0123456789' %}"
        + "".join(f"{{% for c{i} in s %}}" for i in range(9))
        + "{% endfor %}" * 9,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}"
        "{% endfor %}",
        "{% for x in 'x' * 9999 recursive %}"
        "{% if loop.depth < 2 %}{{ loop('x' * 9999) }}{% endif %}{% endfor %}",
        "{% for x in [0] recursive %}{% for y in range(99) %}{% endfor %}"
        "{{ loop(range(99999)) }}{% endfor %}",
        "{{ 'a' * (10 ** 12) }}",
        "{{ (10 ** 12) * [1] }}",
        "{{ 9 ** 99999999 }}",
        "{{ 9 ** 99 ** 99 ** 99 ** 99 ** 99 }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ 'a\\nb' | indent(10 ** 10) }}",
        "{{ [1] | tojson(indent=10 ** 10) }}",
        "{{ [1] | batch(10 ** 10, 'x') | list }}",
        "{{ [1] | slice(10 ** 10) | list }}",
        "{{ lipsum(n=10 ** 9) }}",
        "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
        # Meant to switch the counter off.
        "{% set _penstock_steps = namespace(used=0) %}{% set range = messages.count %}"
        "{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% endfor %}{% endfor %}",
    ],
)
def test_endless_templates_end(source: str) -> None:
    start = time.process_time()
    with pytest.raises(ChatTemplateError, match="larger|longer|more than|too many|undefined"):
        render_chat(source, CHAT)
    assert time.process_time() - start < 10
