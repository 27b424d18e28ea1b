"""Writes tests/golden/chat.json: what transformers renders from chat templates.

The templates are written for this test in the manner of the most used families; those of real
files are compared where a file is given.

    pip install transformers gguf
    python tools/make_chat_golden.py smollm2=smollm2-135m.gguf qwen2.5=qwen2.5-coder-0.5b.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
from transformers.utils.chat_template_utils import render_jinja_template

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "chat.json"

CHATML = """{%- if tools %}<|im_start|>system
{{ messages[0]['content'] if messages[0].role == 'system' else 'You can call functions.' }}
<tools>{% for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content %}{{ message.content | trim }}{% endif %}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}
{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}
{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.first else '') }}
{{- message['content'].strip() + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}
{% endfor %}"""

LLAMA3 = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content | trim %}
{%- set messages = messages[1:] %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none and tools is defined %}{{ 'Environment: ipython\\n' }}
{%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\\n\\n' }}{% endfor %}{% endif %}
{{- ns.system + '<|eot_id|>' }}
{%- for message in messages %}
{%- if 'tool_calls' in message %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
{{- '"parameters": ' }}{{ call.arguments | tojson }}{{ '}<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL = """{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- set loop_messages = messages if system is none else messages[1:] %}
{%- set users = loop_messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in loop_messages %}
{%- if message.role == 'user' %}
{%- if tools and message == users[-1] %}
{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{%- if system is not none and loop.last %}
{{- '[INST]' + system + '\\n\\n' + message.content + '[/INST]' }}
{%- else %}{{ '[INST]' + message.content + '[/INST]' }}{% endif %}
{%- elif message.tool_calls is defined %}[TOOL_CALLS]{{ message.tool_calls | tojson + eos_token }}
{%- elif message.role == 'tool' %}[TOOL_RESULTS]
{{- {'content': message.content} | tojson }}[/TOOL_RESULTS]
{%- else %}{{ message.content + eos_token }}{% endif %}
{%- endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{%- set first = messages[0]['content'] + '\\n\\n' %}{% set rest = messages[1:] %}{% else %}
{%- set first = '' %}{% set rest = messages %}{% endif %}
{%- for message in rest %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
{{- (message['content'] or '') | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

PHI3 = """{% for message in messages %}{% if message['content'] %}
{{'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

PHI4 = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' }}
{{- message['content'] or '' }}{{ '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"""

DEEPSEEK = """{%- set ns = namespace(system='', is_first=true) %}
{%- for message in messages if message['role'] == 'system' %}
{%- set ns.system = ns.system + message['content'] %}{% endfor %}
{{- bos_token + ns.system }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '<\uff5cUser\uff5c>' + message['content'] }}
{%- elif message['role'] == 'assistant' and message['content'] is not none %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<\uff5cAssistant\uff5c>' + content + '<\uff5cend\u2581of\u2581sentence\uff5c>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c><think>\\n' }}{% endif %}"""

COMMAND_R = """{{ bos_token }}{% for message in messages %}
{%- set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}
{%- set who = names.get(message.role, 'SYSTEM') %}
{{- '<|START_OF_TURN_TOKEN|><|' + who + '_TOKEN|>' + (message.content or '') }}
{{- '<|END_OF_TURN_TOKEN|>' }}{% endfor %}
{%- if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"""

GRANITE = """{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|start_of_role|>assistant<|end_of_role|>' }}
{%- generation %}{{ message.content or '' }}{{ '<|end_of_text|>\\n' }}{% endgeneration %}
{%- else %}{{ '<|start_of_role|>' ~ message.role ~ '<|end_of_role|>' ~ message.content }}
{{- '<|end_of_text|>\\n' }}{% endif %}
{%- if loop.index > 20 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

TEMPLATES = {
    "chatml": CHATML, "llama-2": LLAMA2, "llama-3.1": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA,
    "phi-3": PHI3, "phi-4": PHI4, "deepseek": DEEPSEEK, "command-r": COMMAND_R, "granite": GRANITE,
}  # fmt: skip

SYSTEM = {"role": "system", "content": 'Be brief; ünïcode <ok> & "quotes".'}
USER = {"role": "user", "content": "  What is 2 + 2?\n"}
ANSWER = {"role": "assistant", "content": "4.\n\n\tReally: <b>4</b> \u4e2d\u6587 "}
AGAIN = {"role": "user", "content": "And 3 + 3?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds <two> numb\u00e9rs",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "add", "arguments": {"a": 1.5}},
        }
    ],
}
RESULT = {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": '{"sum": 4}'}

CASES: list[tuple[list[dict], dict]] = [
    ([USER], {}),
    ([SYSTEM, USER], {}),
    ([SYSTEM, USER, ANSWER, AGAIN], {}),
    ([USER, ANSWER], {"add_generation_prompt": False}),
    ([SYSTEM, USER], {"tools": [TOOL]}),
    ([SYSTEM, USER, CALL, RESULT], {"tools": [TOOL]}),
]


def main() -> None:
    """Writes the file."""
    templates = dict(TEMPLATES)
    for item in sys.argv[1:]:
        name, path = item.split("=", 1)
        field = gguf.GGUFReader(path).fields["tokenizer.chat_template"]
        templates[name] = field.contents()
    golden = []
    for name, template in templates.items():
        for messages, options in CASES:
            values = {"add_generation_prompt": True, "tools": None, **options}
            try:
                (text,), _ = render_jinja_template(
                    conversations=[messages], chat_template=template, bos_token="<s>",
                    eos_token="</s>", **values,
                )  # fmt: skip
            except Exception as error:
                print(f"{name}: left out, {error}")
                continue
            case = {"name": name, "template": template, "messages": messages}
            golden.append({**case, "options": options, "text": text})
    OUTPUT.write_text(json.dumps(golden, ensure_ascii=True, indent=0) + "\n")
    print(f"{len(golden)} texts of {len(templates)} templates")


if __name__ == "__main__":
    main()
