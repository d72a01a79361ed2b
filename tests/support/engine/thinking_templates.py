"""Chat templates of models that think, each of the shape of a published one and no longer than that takes."""

from __future__ import annotations

from .tool_templates import QWEN

_TURNS = """{%- for m in messages %}
{%- if m.role == 'assistant' %}<|im_start|>assistant
SAID<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
BEGUN{% endif %}"""
_STRIPPED = "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
_KEPT = (
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content.strip('\\n') }}\n</think>\n\n{% endif %}"
    "{{ m.content }}"
)
_OFF = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"


def _turns(said: str, begun: str) -> str:
    """`said`: of an assistant's turn; `begun`: after the beginning of the answer."""
    return _TURNS.replace("SAID", said).replace("BEGUN", begun)


HYBRID = _turns(_KEPT, _OFF)  # Qwen3: the model opens its thinking
OPENED = _turns(_STRIPPED, "<think>\n")  # DeepSeek-R1, QwQ: the prompt does
OPENED_HYBRID = _turns(  # Qwen3.5, Nemotron
    _KEPT,
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}",
)
SEED = _turns(_KEPT, "").replace("<think>", "<seed:think>").replace("</think>", "</seed:think>")
COHERE = (
    _turns(_KEPT.replace("m.reasoning_content", "m.thinking"), "<think>")
    .replace("<think>", "<|START_THINKING|>")
    .replace("</think>", "<|END_THINKING|>")
)
GLM = """[gMASK]<sop>{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>
<think>{{ m.reasoning_content.strip() if m.reasoning_content is string else '' }}</think>
{{ m.content }}{% else %}<|{{ m.role }}|>
{{ m.content }}{{ '/nothink' if m.role == 'user' and enable_thinking is defined and not enable_thinking }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>
{%- if enable_thinking is defined and not enable_thinking %}
<think></think>{% endif %}{% endif %}"""
TOLD = """{% for m in messages %}<|start|>{{ m.role }}
{% if loop.first and thinking %}Think between <think></think>, then answer between <response></response>.
{% endif %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant
{% endif %}"""
DEEPSEEK = """{% for m in messages %}{% if m.role == 'assistant' %}<|Assistant|></think>{{ m.content }}<|end|>
{%- else %}<|User|>{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|Assistant|>{{ '<think>' if thinking else '</think>' }}{% endif %}"""
MAGISTRAL = """{{ messages[0].content if messages[0].role == 'system' else 'Draft: [THINK]thoughts[/THINK]answer' }}
{%- for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]
{%- elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"""

# Qwen3-Thinking's, with tools: the prompt opens the thinking, and the history tells it.
WITH_TOOLS = QWEN.replace(
    "{%- if message.content %}",
    "{%- if message.reasoning_content %}{{- '\n<think>\n' + message.reasoning_content + '\n</think>\n' }}{%- endif %}"
    "{%- if message.content %}",
).replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think>\n' }}")

_THINK = ("<think>", "</think>")
THINKERS = {
    "hybrid": (HYBRID, _THINK),
    "opened": (OPENED, _THINK),
    "with tools": (WITH_TOOLS, _THINK),
    "opened hybrid": (OPENED_HYBRID, _THINK),
    "seed": (SEED, ("<seed:think>", "</seed:think>")),
    "cohere": (COHERE, ("<|START_THINKING|>", "<|END_THINKING|>")),
    "glm": (GLM, _THINK),
    "told": (TOLD, _THINK),
    "deepseek": (DEEPSEEK, _THINK),
    "magistral": (MAGISTRAL, ("[THINK]", "[/THINK]")),
}
