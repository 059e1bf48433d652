"""What Transformers makes of conversations with chat templates as models of our families have them, in all the ways in
which those write the same thing: tests/reference/chat_templates.json.

Usage: .venv/bin/python tools/oracle/chat_templates.py
"""

import json
import pathlib

import transformers

REFERENCE = pathlib.Path(__file__).resolve().parents[2] / "tests" / "reference"

TURN = "'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
REPLY = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
LOOP = "{% for message in messages %}{{" + TURN + "}}{% endfor %}" + REPLY


def with_default(line):
    """ChatML that writes its default system line in the loop, as Qwen2 and SmolLM2 do."""
    first = "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + line + "<|im_end|>\n' }}{% endif %}"
    return LOOP.replace("{% for message in messages %}", "{% for message in messages %}" + first)


def of_qwen25(line):
    """In the form of Qwen2.5, without what it writes of tools."""
    return (
        "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n    {{- messages[0]['content'] }}\n"
        "    {{- \"\\n# Tools<|im_end|>\\n\" }}\n{%- else %}\n    {%- if messages[0]['role'] == 'system' %}\n"
        "        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n    {%- else %}\n"
        "        {{- '<|im_start|>system\\n" + line + "<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n"
        "{%- for message in messages %}\n"
        '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}\n'
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
    )


LLAMA_TURN = "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>'"
LLAMA_REPLY = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"

# name: (template, beginning-of-text token)
TEMPLATES = {
    "no default line": (LOOP, None),
    "default line": (with_default("You are of use."), None),
    "default line with escapes": (with_default("Of\\n use.\\t"), None),
    "qwen2.5": (of_qwen25("You are of use."), None),
    "qwen2.5, braces": (of_qwen25("Answer in \\\\boxed{}, don\\'t guess."), None),
    "lines between blocks": (LOOP.replace("%}{{", "%}\n{{"), None),
    "trimmed": (LOOP.replace("message['content']", "message['content'] | trim"), None),
    "no line after a turn": (LOOP.replace(" + '\n'}}", "}}"), None),
    "literal token first": ("{{ '<|endoftext|>' }}" + LOOP, None),
    "bos token first": ("{{bos_token}}" + LOOP, "<|begin_of_text|>"),
    "bos token not used": (LOOP, "<|begin_of_text|>"),
    "macro": (
        "{% macro turn(m) %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        None,
    ),
    "plain text": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe nice & {kind}: it's \"so\".<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        None,
    ),
    "content in parts": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for c in message['content'] %}{{ c['text'] }}{% endfor %}{% endif %}"
        "{{'<|im_end|>\n'}}{% endfor %}" + REPLY,
        None,
    ),
    "llama-factory": (
        "{% set system_message = 'You are \\'of\\' use.' %}{% if messages[0]['role'] == 'system' %}"
        "{% set system_message = messages[0]['content'] %}{% endif %}{% if system_message is defined %}"
        "{{ '<|im_start|>system\n' + system_message + '<|im_end|>\n' }}{% endif %}{% for message in messages %}"
        "{% set content = message['content'] %}{% if message['role'] == 'user' %}"
        "{{ '<|im_start|>user\n' + content + '<|im_end|>\n<|im_start|>assistant\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ content + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}",
        None,
    ),
    "llama 3": (
        "{{ bos_token }}{% for message in messages %}{{ " + LLAMA_TURN + " }}{% endfor %}" + LLAMA_REPLY,
        "<|begin_of_text|>",
    ),
    "llama 3.1": (
        "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n"
        '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n{{- "Cutting Knowledge Date: December 2023\\n" }}\n'
        '{{- "Today Date: 26 Jul 2024\\n\\n" }}\n{{- system_message }}\n{{- "<|eot_id|>" }}\n'
        "{%- for message in messages %}\n    {{- " + LLAMA_TURN.replace("\n", "\\n") + " }}\n{%- endfor %}\n"
        + LLAMA_REPLY.replace("\n", "\\n"),
        "<|begin_of_text|>",
    ),
}

CONVERSATIONS = [
    ["user:Hello!"],
    ["system:Sys. ", "user:Hi"],
    ["user: a \n", "assistant: b \n", "user:c"],
    ["system:", "user:x"],
    ["user:1", "assistant:2", "user:3", "assistant:4\n", "user:5"],
    ["user:"],
]


def main():
    tokenizer = transformers.AutoTokenizer.from_pretrained(REFERENCE / "models" / "tied")
    rows = []
    for name, (template, bos) in TEMPLATES.items():
        tokenizer.bos_token = bos
        row = {"name": name, "template": template, "bos": bos, "conversations": []}
        for turns in CONVERSATIONS:
            messages = [dict(zip(("role", "content"), turn.split(":", 1))) for turn in turns]
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            row["conversations"].append({"messages": messages, "text": text})
        rows.append(row)
    with open(REFERENCE / "chat_templates.json", "w", encoding="utf-8") as file:
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        file.write(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
