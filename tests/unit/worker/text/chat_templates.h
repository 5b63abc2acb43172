// Chat templates of the supported shapes, in spellings of our own; shared by the tests.
#pragma once

namespace loopserve::worker {

// The loop with a default system message: SmolLM2 and Qwen 2, which differ in that message.
inline constexpr char kSmolLm2Template[] =
    "{%- for message in messages -%}{%- if loop.first and messages[0].role != \"system\" -%}"
    "{{- '<|im_start|>system\n' + 'You are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n' -}}{%- endif -%}{{- '<|im_start|>' + message.role + '\n' + message.content "
    "+ "
    "'<|im_end|>\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\n' -}}{%- endif -%}";

// The loop alone.
inline constexpr char kPlainChatMlTemplate[] =
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}";

// Llama 3, which strips the content.
inline constexpr char kLlama3Template[] =
    "{%- set loop_messages = messages %}\n"
    "{%- for message in loop_messages %}\n"
    "  {%- set content = '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + "
    "message.content | trim + '<|eot_id|>' %}\n"
    "  {%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}\n"
    "  {{- content }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif %}\n";

}  // namespace loopserve::worker
