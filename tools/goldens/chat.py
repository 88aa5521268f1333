#!/usr/bin/env python3
"""Chat templates and pieces of Jinja as `transformers` renders them, for crates/deltallm-models/tests/chat.

    python chat.py

The environment is that of `transformers.utils.chat_template_utils`. The templates, in tests/fixtures/chat/families, are written after
the published ones: their constructs, and their text, shortened in places.
"""

import datetime
import json
from pathlib import Path

from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

FIXTURES = Path(__file__).resolve().parents[2] / "crates/deltallm-models/tests/fixtures/chat"
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)

CONVERSATIONS = [
    ([("user", "Hi")], True),
    (
        [("system", "Be brief."), ("user", "What is 2 + 2?"), ("assistant", "4"), ("user", '  And <3 & "5"?\n')],
        True,
    ),
    ([("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb")], False),
    ([("user", "a"), ("user", "b")], False),
]

# bos, eos; templates that take tools are rendered with them too.
FAMILIES = {
    "bitnet-2b4t": ("<|begin_of_text|>", "<|eot_id|>"),
    "chatml": ("<s>", "<|im_end|>"),
    "command-r": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek-r1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek-v2": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "falcon-3": ("", "<|endoftext|>"),
    "gemma-2": ("<bos>", "<eos>"),
    "gemma-3": ("<bos>", "<eos>"),
    "gpt-oss": ("<|startoftext|>", "<|return|>"),
    "granite-3": ("<|end_of_text|>", "<|end_of_text|>"),
    "llama-2": ("<s>", "</s>"),
    "llama-3": ("<|begin_of_text|>", "<|eot_id|>"),
    "llama-3.1": ("<|begin_of_text|>", "<|eot_id|>"),
    "mistral-v0.1": ("<s>", "</s>"),
    "mistral-v0.3": ("<s>", "</s>"),
    "mixtral": ("<s>", "</s>"),
    "olmo-2": ("<|endoftext|>", "<|endoftext|>"),
    "phi-3": ("<s>", "<|endoftext|>"),
    "phi-4": ("<|endoftext|>", "<|im_end|>"),
    "qwen-1.5": ("", "<|im_end|>"),
    "qwen-2.5": ("", "<|im_end|>"),
    "qwen-3": ("", "<|im_end|>"),
    "smollm-3": ("", "<|im_end|>"),
    "smolvlm": ("<|im_start|>", "<end_of_utterance>"),
    "stablelm-2": ("", "<|endoftext|>"),
    "yi": ("<|startoftext|>", "<|im_end|>"),
    "zephyr": ("<s>", "</s>"),
}
PARTS = ["smolvlm"]

# Before a template: what the caller of `transformers` gives as `tools` and the like.
SETTINGS = {
    "": list(FAMILIES),
    "{% set tools = [{'type': 'function', 'function': {'name': 'weather', 'description': 'The weather é.', 'parameters': "
    "{'type': 'object', 'properties': {'city': {'type': 'string', 'enum': ['A', 'B']}, 'days': {'type': 'array', 'items': "
    "{'type': 'integer'}}, 'unit': {'type': ['string', 'null']}}, 'required': ['city']}}}] %}": [
        "falcon-3", "gpt-oss", "granite-3", "llama-3.1", "mistral-v0.3", "qwen-2.5",
    ],
    "{% set enable_thinking = false %}": ["qwen-3", "smollm-3"],
    "{% set controls = {'length': 'long', 'n': 1.5} %}": ["granite-3"],
}

X = "[{'b': 1, 'a': [true, none, 1.0, 2.5e20, 1e-7, -3]}, {}, [], 'é\\n\"<>&\\'']"
PIECES = [
    # White space.
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a \n {%- if true -%} \n b \n {%- endif -%} \n c\n\n",
    "  {%+ if true %}x{% endif %}\n {# comment #}\n y",
    "{% raw %}{{ x }}{% if %}{% endraw %}\n.{%- raw -%} {% generation %} {%- endraw -%} .",
    "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\rd\n\re{{ '\r\n' }}f\r\n",
    "{% for m in messages %}\r\n  {{ m.role }}\r\n{% endfor %}\r\n",
    "{{ '}}' }}{{ \"%}\" }}{{ {'a': {'b': 1}}.a.b }}{{ '\\'}}' }}{{ '\\\\' }}",
    # The tag of `transformers`.
    "{% for m in messages %}{% if m.role == 'user' %}{% generation %}<{{ m.content }}>{% endgeneration %}{% endif %}{% endfor %}",
    "{% set x = 1 %}\n{%- generation -%}\n{% set x = 2 %} {{ x }} \n{%- endgeneration -%}\n{{ x }}{% set generation = 3 %}{{ generation }}",
    "a\n  {% generation %}\n  b\n  {% endgeneration %}\nc",
    # tojson.
    *[f"{{{{ {X} | tojson{arguments} }}}}" for arguments in (
        "", "(indent=2)", "(indent=0)", "(ensure_ascii=true)", "(true)", "(separators=(',', ':'))", "(sort_keys=true)",
        "(false, 4)", "(indent='\\t', sort_keys=true)", "(indent=1, separators=(' ,', ' : '))", "(ensure_ascii=false, indent=none)",
    )],
    "{{ '\\x7f\\x1f😀' | tojson }}{{ '\\x7f\\x1f😀' | tojson(ensure_ascii=true) }}",
    "{{ {1: 2, none: 3, 1.5: 5} | tojson }}",
    "{{ messages | tojson }}",
    "{{ [0.1, 100.0, 1e15, 1e16, 123456789012345680000.0, 0.0001, 0.00001, -0.0, 12345678901234567890] | tojson }}",
    # Strings.
    "{{ 'a,b,c'.split(',') | join('|') }} {{ 'a b  c'.split() | length }} {{ 'a,b,c'.split(',', 1)[1] }} {{ 'a,b,c'.rsplit(',', 1)[0] }}",
    "{{ 'a-b-c'.partition('-')[2] }} {{ 'a-b-c'.rpartition('-')[0] }} {{ 'abc'.partition('-')[0] }} {{ 'abc'.rpartition('-')[2] }}",
    "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }}",
    "{{ '  x '.strip() }}{{ ' x '.lstrip() }}|{{ ' x '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ '\\nx\\n'.rstrip('\\n') }}|",
    "{{ 'ab'.upper() }}{{ 'AB'.lower() }}{{ 'ab cd'.title() }}{{ 'ab CD'.capitalize() }}{{ 'ab' | upper }}{{ 'aB' | title }}",
    "{{ 'abcabc'.replace('b', 'x') }} {{ 'abcabc'.replace('b', 'x', 1) }} {{ 'abab' | replace('a', 'c') }} {{ 'abc'.find('c') }} {{ 'abc'.count('b') }}",
    "{{ 'a {} {} {x}'.format(1, 'two', x='three') }} {{ '%s and %s' | format('a', 2) }} {{ '{:>5}|{:<4}|{:^5}|{:03d}'.format('a', 'b', 'c', 7) }}",
    "{{ 'abc'.startswith('a') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.isdigit() }} {{ ','.join(['a', 'b']) }} {{ 'a\\nb'.splitlines() | length }}",
    "{{ 'abc'[1:] }} {{ 'abc'[:-1] }} {{ 'abc'[::-1] }} {{ 'abc'[0] }} {{ 'abc'[-1] }} {{ [1, 2, 3][::2] | join }} {{ [1, 2, 3][-2:] | join }}",
    "{{ 'a' ~ 1 ~ none ~ true }} {{ 'a' + 'b' }} {{ 'ab' * 2 }} {{ 'a' 'b' }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }} {{ 7 / 2 }} {{ -7 // 2 }}",
    "{{ 'a b_c d!' | wordcount }} {{ 'abc' | length }} {{ 'abc' | first }} {{ 'abc' | last }} {{ ' a ' | trim }}| {{ 'x' | default('y') }}{{ z | default('y') }}{{ '' | default('y', true) }}",
    "{{ 'a\\nb' | indent }} {{ 'a\\nb' | indent(2, true) }} {{ '12' | int + 1 }} {{ 1.7 | int }} {{ 'x' | string }} {{ 3 | string + 'a' }}",
    "{{ true }} {{ none }} {{ 1.0 }} {{ [1, 'a', none, true, 1.5] }} {{ {'a': 'b', 'c': [1]} }} {{ ('a', 1) }} {{ ['it\\'s', 'a\"b', 'a\\nb'] }}",
    "{{ ['a', {'b': \"c'd\"}] | string }} {{ ['a'] ~ '!' }}",
    # Lists and dictionaries.
    "{{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 2) }} {{ {'a': 1, 'b': 2}.keys() | list | join }} {{ {'a': 1}.values() | list | join }}",
    "{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %} {% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %} {% for k, v in {'b': 1} | items %}{{ k }}{% endfor %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(',') }} {{ messages | rejectattr('role', 'in', ['user']) | list | length }}",
    "{{ [3, 1, 2] | sort | join }} {{ [1, 2, 1] | unique | join }} {{ [1, 2, 3] | select('odd') | join }} {{ [1, 2] | reject('odd') | join }} {{ [1, 2] | sum }} {{ [1, 2] | max }} {{ [1, 2] | reverse | join }}",
    "{% for a in [1, 2, 3, 4, 5] | batch(2) %}{{ a | join }};{% endfor %} {% for a in [1, 2, 3] | slice(2) %}{{ a | join }};{% endfor %} {% for k, g in [{'a': 1, 'b': 2}, {'a': 1, 'b': 3}] | groupby('a') %}{{ k }}{{ g | length }}{% endfor %}",
    "{{ [1] + [2] }} {{ ([{'role': 'x'}] + messages) | length }} {{ 1 in [1, 2] }} {{ 'a' in {'a': 1} }} {{ 'role' in messages[0] }} {{ 'b' not in 'abc' }} {{ [1, 2] == [1, 2] }}",
    "{{ range(3) | list }} {{ range(1, 6, 2) | join }} {{ dict(a=1).a }} {{ [1, 2] | length }} {{ [[1, 2], [3]] | map('length') | join }}",
    # Statements.
    "{% set ns = namespace(x=0, y='a') %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}",
    "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{%- break %}{% endif %}{{ i }}{% endfor %}",
    "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.cycle('a', 'b') }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}none{% endfor %}{% for m in [] %}{% else %}none{% endfor %}",
    "{% macro f(a, b='x', c=none) %}[{{ a }}{{ b }}{{ c }}{{ caller() if caller }}]{% endmacro %}{{ f(1) }}{{ f(1, c=2) }}{{ f('a', 'b') | upper }}{% call f(9) %}inner{% endcall %}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(20) }}",
    "{% set x %}a{{ 1 }}{% endset %}{{ x }}{{ x | length }}{% set a, b = 1, 2 %}{{ a }}{{ b }}{% with c = 3 %}{{ c }}{% endwith %}{{ c }}",
    "{% filter upper %}a{{ 'b' }}{% endfilter %}{% set x | trim %}  y {% endset %}{{ x }}.",
    "{% for item in [1, [2, [3]]] recursive %}{% if item is number %}{{ item }}{% else %}({{ loop(item) }}){% endif %}{% endfor %}",
    "{% if a is defined and a.b %}x{% elif messages %}y{% else %}z{% endif %}{{ 'a' if false }}{{ 'a' if false else 'b' }}{{ ('x' if true else 'y') + 'z' }}",
    "{{ messages is iterable }} {{ 'a' is string }} {{ {} is mapping }} {{ [] is sequence }} {{ none is none }} {{ x is undefined }} {{ 1 is number }} {{ true is boolean }} {{ 1.5 is float }} {{ 1 is integer }} {{ 'a' is iterable }} {{ {} is not string }}",
    "{{ not 1 == 2 }} {{ 1 < 2 < 3 }} {{ 1 if not none and not '' else 2 }} {{ none or 'a' }} {{ 'a' and 'b' }} {{ x or 'y' }} {{ (1, 2) | length }}",
    "{% set j = joiner(', ') %}{% for i in range(3) %}{{ j() }}{{ i }}{% endfor %} {% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}",
    "{{ messages[0].tool_calls is defined }} {{ messages[0]['tool_calls'] }}{{ messages[0].get('tool_calls') is none }} {{ messages[-1].content }} {{ (messages | last).role }}",
    "{{ '' if tools is none else 'tools' }}{{ documents is none }} {{ tools | length if tools }} {% if add_generation_prompt is defined %}{{ add_generation_prompt }}{% endif %}",
]


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    def _support(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def render(source, bos, eos, messages, add_generation_prompt, parts=False):
    content = lambda text: [{"type": "text", "text": text}] if parts else text
    messages = [{"role": role, "content": content(text)} for role, text in messages]
    template = environment().from_string(source)
    try:
        return template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, bos_token=bos, eos_token=eos
        )
    except TemplateError as error:
        return {"raised": str(error)}


def families():
    for before, names in SETTINGS.items():
        for name in names:
            with open(FIXTURES / f"families/{name}.jinja", newline="") as file:
                source = before + file.read()
            bos, eos = FAMILIES[name]
            expected = [render(source, bos, eos, *conversation, name in PARTS) for conversation in CONVERSATIONS]
            yield {"family": name, "before": before, "bos": bos, "eos": eos, "expected": expected}


def main():
    messages = [("user", " ab cd "), ("assistant", "a <i>é</i>")]
    goldens = {
        "conversations": [{"messages": messages, "add_generation_prompt": prompt} for messages, prompt in CONVERSATIONS],
        "families": list(families()),
        "messages": messages,
        "pieces": [[source, render(source, "<s>", "</s>", messages, False)] for source in PIECES],
    }
    (FIXTURES / "goldens.json").write_text(json.dumps(goldens, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
