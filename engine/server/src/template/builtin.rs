//! Chat templates that can be asked for by name, in Jinja.

/// Names that can be asked for.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}

pub(super) fn builtin(name: &str) -> Option<(&'static str, &'static str)> {
    BUILTIN.iter().copied().find(|(known, _)| *known == name)
}

const BUILTIN: &[(&str, &str)] = &[
    ("bitnet", BITNET),
    ("chatml", CHATML),
    ("llama2", LLAMA2),
    ("llama2-sys", LLAMA2),
    ("llama3", LLAMA3),
    ("falcon3", FALCON3),
    ("phi3", PHI3),
    ("gemma", GEMMA),
    ("mistral-v1", MISTRAL_V1),
    ("mistral-v3", MISTRAL_V3),
    ("mistral-v3-tekken", MISTRAL_TEKKEN),
    ("mistral-v7", MISTRAL_V7),
    ("zephyr", ZEPHYR),
    ("vicuna", VICUNA),
];

/// Hugging Face's template of BitNet-b1.58-2B-4T.
pub(super) const BITNET: &str = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
{{ message['role'] | capitalize }}: {{ message['content'] | trim }}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

pub(super) const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const LLAMA2: &str = "{% set ns = namespace(system='') %}{% for message in messages %}\
{% if message['role'] == 'system' %}{% set ns.system = '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' %}\
{% elif message['role'] == 'user' %}{{ bos_token + '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}\
{% else %}{{ ' ' + (message['content'] | trim) + ' ' + eos_token }}{% endif %}{% endfor %}";

const LLAMA3: &str = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + (message['content'] | trim) + '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

const FALCON3: &str = "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

const PHI3: &str = "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

const GEMMA: &str = "{% set ns = namespace(system='') %}{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{% set ns.system = (message['content'] | trim) + '\n\n' %}\
{% else %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
{{ '<start_of_turn>' + role + '\n' + ns.system + (message['content'] | trim) + '<end_of_turn>\n' }}{% set ns.system = '' %}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

const MISTRAL_V1: &str = "{% set ns = namespace(system='') %}{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}\
{% elif message['role'] == 'user' %}{{ ' [INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}\
{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}";

const MISTRAL_V3: &str = "{% set ns = namespace(system='') %}{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}\
{% elif message['role'] == 'user' %}{{ '[INST] ' + ns.system + message['content'] + '[/INST]' }}{% set ns.system = '' %}\
{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}";

const MISTRAL_TEKKEN: &str = "{% set ns = namespace(system='') %}{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}\
{% elif message['role'] == 'user' %}{{ '[INST]' + ns.system + message['content'] + '[/INST]' }}{% set ns.system = '' %}\
{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";

const MISTRAL_V7: &str = "{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT] ' + message['content'] + '[/SYSTEM_PROMPT]' }}\
{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}\
{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}";

const ZEPHYR: &str = "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|endoftext|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

const VICUNA: &str = "{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}\
{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + '\n' }}\
{% else %}{{ 'ASSISTANT: ' + message['content'] + '</s>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";
