"""Small chat templates that speak of tools as those of the served families do; written for the tests."""

from __future__ import annotations

QWEN = """{%- if tools %}
{{- '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
{{- '# Functions\n<tools>' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\n</tools>\nCall as\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant' }}{%- if message.content %}{{- '\n' + message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""

LLAMA = """{{- bos_token }}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday is the day.\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] | trim }}{%- endif %}{{- '<|eot_id|>' }}
{%- for message in messages %}
{%- if message.role == 'user' and tools is not none and loop.index0 <= 1 %}
{{- '<|start_header_id|>user<|end_header_id|>\n\nAnswer as {"name": function, "parameters": object}.\n\n' }}
{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\n\n' }}{%- endfor %}
{{- message.content | trim + '<|eot_id|>' }}
{%- elif 'tool_calls' in message and message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('one call a message') }}{%- endif %}
{%- set called = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + called.name + '", "parameters": ' }}
{{- called.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{- message.content | tojson }}{{- '<|eot_id|>' }}
{%- elif message.role != 'system' %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""

GLM = """[gMASK]<sop>
{%- if tools %}<|system|>
# Functions
{%- for tool in tools %}

## {{ tool.function.name }}

{{ tool.function | tojson(indent=4, ensure_ascii=False) }}
{%- endfor %}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|observation|>
{{ message.content }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{%- for call in message.tool_calls %}<|assistant|>{{ call.function.name }}
{{ call.function.arguments | tojson(ensure_ascii=False) }}
{%- endfor %}
{%- else %}<|{{ message.role }}|>
{{ message.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

GLM_XML = """[gMASK]<sop>
{%- if tools %}<|system|>
<tools>
{%- for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{%- endfor %}
</tools>
Call as <tool_call>{name}
<arg_key>{key}</arg_key>
<arg_value>{value}</arg_value>
</tool_call>
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|observation|>
<tool_response>
{{ message.content }}
</tool_response>
{%- else %}<|{{ message.role }}|>
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>{{ call.function.name }}
{%- for key, value in call.function.arguments.items() %}
<arg_key>{{ key }}</arg_key>
<arg_value>{{ value if value is string else value | tojson(ensure_ascii=False) }}</arg_value>
{%- endfor %}
</tool_call>
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

MISTRAL = """{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}
{%- elif message.role == 'user' %}
{%- if tools is not none and loop.index0 <= 1 %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}
{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined and message.tool_calls is not none %}
{{- '[TOOL_CALLS][' }}
{%- for call in message.tool_calls %}
{%- if call.id is not defined or call.id | length != 9 %}{{- raise_exception('ids have 9 characters') }}{%- endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- ', "id": "' + call.id + '"}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}
{%- endfor %}
{{- ']' + eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]{"content": ' }}{{- message.content | tojson }}
{{- ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{- message.content + eos_token }}{%- endif %}
{%- endfor %}
"""

# GLM-4-0414's shape: tools are a variable, a call is a turn with metadata, what came of it an observation.
GLM_METADATA = """
{%- if tools %}<|system|>
{%- for tool in tools %}
## {{ tool.function.name }}
{%- endfor %}{% endif %}
{%- for item in messages %}
{%- set meta = item.get("metadata", "") %}
{%- if item.role == 'user' %}<|user|>
{{ item.content }}
{%- elif item.role == 'assistant' %}<|assistant|>{{ meta }}
{{ item.content }}
{%- elif item.role == 'observation' %}<|observation|>
{{ item.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

# glm-4-9b-chat's shape: tools are a field of a system item, and a variable of this name is the template's own.
GLM_SYSTEM_ITEM = """
{%- for item in messages %}
{%- if item['tools'] is defined %}<|system|>
{%- set tools = item['tools'] %}
{%- for tool in tools %}
## {{ tool['function']['name'] }}
{%- endfor %}
{%- if item['content'] %}
{{ item['content'] }}
{%- endif %}
{%- elif item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}
{{ item['content'] }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

# LFM2's and Granite 3.3's shape: tools are offered, calls have no place.
NO_CALLS = """
{%- if tools %}offered: {{ tools | tojson }}
{% endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}"""

# DeepSeek-R1's shape: calls are told where nothing is said beside them.
CONTENT_FIRST = """{{ tools }}
{%- for message in messages %}
{%- if message.content and message.role in ('user', 'assistant', 'tool') %}[{{ message.role }}]{{ message.content }}
{%- elif message.tool_calls %}<tool_call>{{ message.tool_calls[0].function | tojson }}</tool_call>
{%- endif %}
{%- endfor %}"""

TEMPLATES = {"hermes": QWEN, "llama": LLAMA, "glm": GLM, "glm-xml": GLM_XML, "mistral": MISTRAL}


def written(call: str, *, before: str = "", between: str = "", after: str = "", text: str = "") -> str:
    """A template of ChatML turns, whose calls are `call` (of `name`, `arguments`, `index` and `id`)."""
    return f"""{{{{- 'offered: ' + tools | tojson if tools else '' }}}}
{{%- for message in messages %}}{{{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}}}
{{%- if message.tool_calls %}}{{{{- {text!r} if message.content else '' }}}}{{{{- {before!r} }}}}
{{%- for call in message.tool_calls %}}
{{%- set name, arguments, id, index = call.function.name, call.function.arguments, call.id, loop.index0 %}}
{{%- if index %}}{{{{- {between!r} }}}}{{%- endif %}}{call}{{%- endfor %}}{{{{- {after!r} }}}}{{%- endif %}}
{{{{- '<|im_end|>\\n' }}}}{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{- '<|im_start|>assistant\\n' }}}}{{%- endif %}}"""


_OPEN = """{{- %r + name + %r }}"""
_EACH = """{%%- for key, value in arguments.items() %%}{{- %s }}{%%- endfor %%}"""
_PLAIN = "(value if value is string else value | tojson)"

# Forms of calls as published templates have them: Qwen3-Coder's, MiniMax M2's, DeepSeek V3.2's, Kimi K2's, Apertus's,
# Cohere's, LFM2.5's, Gemma 4's and others'.
FORMS = {
    "function tags": written(
        _OPEN % ("<tool_call>\n<function=", ">\n")
        + _EACH % "'<parameter=' + key + '>\n' + (value if value is string else value | string) + '\n</parameter>\n'"
        + "{{- '</function>\n</tool_call>' }}",
        between="\n",
        text="\n",
    ),
    "invoke tags": written(
        _OPEN % ('<invoke name="', '">\n')
        + _EACH % f"'<parameter name=\"' + key + '\">' + {_PLAIN} + '</parameter>\n'"
        + "{{- '</invoke>\n' }}",
        before="<calls>\n",
        after="</calls>",
        text="\n",
    ),
    "typed tags": written(
        _OPEN % ('<invoke name="', '">\n')
        + _EACH
        % (
            "'<parameter name=\"' + key + '\" string=\"' + ('true' if value is string else 'false') + '\">' "
            f"+ {_PLAIN} + '</parameter>\n'"
        )
        + "{{- '</invoke>\n' }}",
        before="<calls>\n",
        after="</calls>",
        text="\n\n",
    ),
    "numbered": written(
        "{{- '<|call|>functions.' + name + ':' + index | string + '<|arguments|>' + arguments | tojson + '<|end|>' }}",
        before="<|calls|>",
        after="<|calls_end|>",
    ),
    "name as key": written(
        """{{- '{"' + name + '": ' + arguments | tojson + '}' }}""", before="<|tools|>[", between=", ", after="]<|end|>"
    ),
    "identified": written(
        """{{- '{"call_id": "' + index | string + '", "tool_name": "' + name + '", "input": ' }}"""
        """{{- arguments | tojson + '}' }}""",
        before="<|action|>[\n",
        between=",\n",
        after="\n]<|action_end|>",
    ),
    "python": written(
        "{{- name + '(' }}"
        "{%- for key, value in arguments.items() %}"
        "{{- key + '=' + (\"'\" + value + \"'\" if value is string else value | string) }}"
        "{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ')' }}",
        before="<|call|>[",
        between=", ",
        after="]<|call_end|>",
    ),
    "quoted": """
{%- macro shown(value) %}
{%- if value is string %}{{- '<|"|>' + value + '<|"|>' }}
{%- elif value is mapping %}{{- '{' }}{%- for key, inner in value | dictsort %}{{- key + ':' + shown(inner) }}
{%- if not loop.last %},{% endif %}{%- endfor %}{{- '}' }}
{%- elif value is iterable %}{{- '[' }}{%- for inner in value %}{{- shown(inner) }}
{%- if not loop.last %},{% endif %}{%- endfor %}{{- ']' }}
{%- else %}{{- value | tojson }}{%- endif %}
{%- endmacro %}"""
    + written(
        "{{- '<|call>call:' + name + shown(arguments) + '<call|>' }}",
    ),
    "arguments as text": written("{{- '<function=' + name + '>' + arguments + '</function>' }}"),
    "one call": written(
        """{%- if message.tool_calls | length > 1 %}{{- raise_exception('one call') }}{%- endif %}"""
        """{{- '<|call|>' + {'name': name, 'arguments': arguments} | tojson }}"""
    ),
    "short ids": written(
        """{%- if id | length != 9 %}{{- raise_exception('ids have 9 characters') }}{%- endif %}"""
        """{{- '[TOOL_CALLS]' + name + '[CALL_ID]' + id + '[ARGS]' + arguments | tojson }}"""
    ),
    "thinking": written(
        """{{- '<tool_call>\n' + {'name': name, 'arguments': arguments} | tojson + '\n</tool_call>' }}""", between="\n"
    ).replace("(message.content", "('</think>\\n' if message.role == 'assistant' else '') + (message.content")
    + "{%- if add_generation_prompt %}{{- '<think>\n' }}{%- endif %}",
}
