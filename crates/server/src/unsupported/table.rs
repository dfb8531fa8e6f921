//! The table of unsupported parameters.

use super::*;

const NO_SAMPLER: &str = "is not supported: incant does not have this way to choose tokens.";
const NO_SEARCH: &str = "is not supported: incant samples each answer by itself.";
const NO_LIMIT: &str = "is not supported; `timeout` limits the time, `max_tokens` the length.";
const NO_EMBEDDINGS: &str = "is not supported: prompts are texts or token ids.";
const NO_REASONING: &str = "is not supported: incant has no reasoning mode.";
const NO_REPORT: &str = "is not supported: incant does not report this.";
const NO_TOOLS: &str = "is not supported: incant has no tool calls.";
const NO_GRAMMAR: &str = "is not supported: incant does not constrain answers to a format.";
const NO_AUDIO: &str = "is not supported: incant reads and writes text only.";
const NO_COMPARED: &str = "is not supported in comparisons.";
const NO_TEMPLATE: &str =
    "is not supported: how a conversation is written is chosen by the model id (`MODEL@PROFILE`).";

/// Parameters that neither endpoint supports.
pub(crate) const EVERYWHERE: &[Unsupported] = &[
    unsupported("use_beam_search", off, NO_SEARCH),
    unsupported("num_beams", one, NO_SEARCH),
    unsupported("early_stopping", off, NO_SEARCH),
    unsupported("length_penalty", one, NO_SEARCH),
    unsupported("mirostat", zero, NO_SAMPLER),
    unsupported("mirostat_mode", zero, NO_SAMPLER),
    unsupported("mirostat_tau", anything, ""),
    unsupported("mirostat_eta", anything, ""),
    unsupported("dynatemp_range", zero, NO_SAMPLER),
    unsupported("dynatemp_exponent", anything, ""),
    unsupported("dynamic_temperature", off, NO_SAMPLER),
    unsupported("adaptive_target", below_zero, NO_SAMPLER),
    unsupported("adaptive_decay", anything, ""),
    unsupported("tfs", one, NO_SAMPLER),
    unsupported("tfs_z", one, NO_SAMPLER),
    unsupported("top_a", zero, NO_SAMPLER),
    unsupported("epsilon_cutoff", zero, NO_SAMPLER),
    unsupported("eta_cutoff", zero, NO_SAMPLER),
    unsupported("smoothing_factor", zero, NO_SAMPLER),
    unsupported("penalty_alpha", zero, NO_SAMPLER),
    unsupported("no_repeat_ngram_size", zero, NO_SAMPLER),
    unsupported("encoder_repetition_penalty", one, NO_SAMPLER),
    unsupported("min_keep", zero, NO_SAMPLER),
    unsupported(
        "samplers",
        never,
        "is not supported: the order of samplers is fixed, and each is off unless it is asked for.",
    ),
    unsupported(
        "repeat_last_n",
        |value| number(value) == Some(-1.0),
        "can only be -1: `repetition_penalty` counts the whole answer.",
    ),
    unsupported("logits_processors", empty, NO_SAMPLER),
    unsupported("vllm_xargs", empty, NO_SAMPLER),
    unsupported(
        "bad_words_ids",
        empty,
        "is not supported; `bad_words` takes texts.",
    ),
    unsupported("force_words_ids", empty, NO_SEARCH),
    unsupported(
        "ban_eos_token",
        off,
        "is not supported; `ignore_eos` keeps an answer going.",
    ),
    unsupported(
        "guidance_scale",
        one,
        "is not supported; `guidance` is 1 less.",
    ),
    unsupported(
        "negative_prompt",
        |value| one_of(value, &[""]),
        "is not supported; `guidance` leads away from a prompt.",
    ),
    unsupported(
        "n_predict",
        below_zero,
        "is not supported; `max_tokens` is what it is called here.",
    ),
    unsupported("t_max_predict_ms", not_above_zero, NO_LIMIT),
    unsupported("t_max_prompt_ms", not_above_zero, NO_LIMIT),
    unsupported("n_indent", zero, NO_GRAMMAR),
    unsupported("prompt_embeds", never, NO_EMBEDDINGS),
    unsupported("inputs_embeds", never, NO_EMBEDDINGS),
    unsupported("image_data", empty, NO_EMBEDDINGS),
    unsupported("multi_modal_data", empty, NO_EMBEDDINGS),
    unsupported("mm_processor_kwargs", empty, NO_EMBEDDINGS),
    unsupported(
        "kv_transfer_params",
        empty,
        "is not supported: KV stays where it is.",
    ),
    unsupported(
        "lora",
        empty,
        "is not supported: an adapter is named in the model id (`MODEL+ADAPTER`).",
    ),
    unsupported(
        "lora_request",
        empty,
        "is not supported: an adapter is named in the model id (`MODEL+ADAPTER`).",
    ),
    unsupported("thinking_token_budget", never, NO_REASONING),
    unsupported("thinking", no_thinking, NO_REASONING),
    unsupported("reasoning", no_thinking, NO_REASONING),
    unsupported(
        "priority",
        zero,
        "is not supported: slots are shared evenly among clients.",
    ),
    unsupported(
        "n_probs",
        zero,
        "is not supported; `logprobs` asks for log-probabilities.",
    ),
    unsupported("post_sampling_probs", off, NO_REPORT),
    unsupported("logprob_token_ids", empty, NO_REPORT),
    unsupported("return_token_strs", off, NO_REPORT),
    unsupported(
        "return_tokens",
        off,
        "is not supported; `return_token_ids` is.",
    ),
    unsupported("return_progress", off, NO_REPORT),
    unsupported("timings_per_token", off, NO_REPORT),
    unsupported("response_fields", empty, NO_REPORT),
    unsupported("return_hidden_states", off, NO_REPORT),
    unsupported("structural_tag", never, NO_GRAMMAR),
    unsupported("grammar_triggers", empty, NO_GRAMMAR),
    unsupported("guided_whitespace_pattern", never, NO_GRAMMAR),
    unsupported("regex", never, NO_GRAMMAR),
    unsupported("ebnf", never, NO_GRAMMAR),
    unsupported("stop_regex", empty, NO_GRAMMAR),
    unsupported(
        "prompt_logprobs",
        never,
        "is not supported; /v1/completions with `echo` and `logprobs` scores a prompt.",
    ),
    unsupported(
        "include_stop_str_in_output",
        off,
        "is not supported: the stop text is never part of the answer.",
    ),
    unsupported(
        "skip_special_tokens",
        on,
        "cannot be turned off: control tokens have no text.",
    ),
    unsupported("guided_json", never, NO_GRAMMAR),
    unsupported("guided_regex", never, NO_GRAMMAR),
    unsupported("guided_choice", never, NO_GRAMMAR),
    unsupported("guided_grammar", never, NO_GRAMMAR),
    unsupported("structured_outputs", never, NO_GRAMMAR),
    unsupported("json_schema", empty, NO_GRAMMAR),
    unsupported("grammar", |value| one_of(value, &[""]), NO_GRAMMAR),
    unsupported(
        "response_format",
        |value| value.read::<Object<TextFormat>>().is_some(),
        "can only be {\"type\": \"text\"}: incant does not constrain answers to a format.",
    ),
    // These concern OpenAI's own service and change no answer.
    unsupported("user", |value| value.is_text(), "must be a string."),
    unsupported("metadata", |value| value.is_object(), "must be an object."),
    unsupported("safety_identifier", anything, ""),
    unsupported("prompt_cache_key", anything, ""),
    unsupported("prompt_cache_retention", anything, ""),
    unsupported("cache_prompt", anything, ""),
    unsupported("store", off, "is not supported: incant keeps no answers."),
    unsupported(
        "service_tier",
        |value| one_of(value, &["auto", "default"]),
        "can only be `auto` or `default`.",
    ),
];

/// Parameters that chat does not support.
pub(crate) const CHAT: &[Unsupported] = &[
    unsupported("tools", empty, NO_TOOLS),
    unsupported("functions", empty, NO_TOOLS),
    unsupported(
        "tool_choice",
        |value| one_of(value, &["none", "auto"]),
        NO_TOOLS,
    ),
    unsupported(
        "function_call",
        |value| one_of(value, &["none", "auto"]),
        NO_TOOLS,
    ),
    unsupported(
        "parallel_tool_calls",
        |value| value.read::<bool>().is_some(),
        "must be true or false.",
    ),
    unsupported("audio", never, NO_AUDIO),
    unsupported(
        "modalities",
        |value| value.read::<Vec<Text>>().is_some(),
        NO_AUDIO,
    ),
    unsupported(
        "web_search_options",
        never,
        "is not supported: incant does not search the web.",
    ),
    unsupported(
        "reasoning_effort",
        |value| one_of(value, &["none"]),
        "is not supported: incant has no reasoning mode.",
    ),
    unsupported(
        "verbosity",
        |value| one_of(value, &["medium"]),
        "is not supported: ask for it in a message.",
    ),
    unsupported(
        "echo",
        off,
        "is not supported in chat; /v1/completions has it.",
    ),
    unsupported("chat_template", never, NO_TEMPLATE),
    unsupported("chat_template_kwargs", empty, NO_TEMPLATE),
    unsupported("add_generation_prompt", on, NO_TEMPLATE),
    unsupported("continue_final_message", off, NO_TEMPLATE),
    unsupported("documents", empty, NO_TEMPLATE),
    unsupported(
        "add_special_tokens",
        off,
        "is not supported in chat: the template says how a conversation begins.",
    ),
];

/// Parameters that comparisons do not support, besides those of chat.
pub(crate) const COMPARE: &[Unsupported] = &[
    unsupported("truncate_prompt_tokens", never, NO_COMPARED),
    unsupported("return_token_ids", off, NO_COMPARED),
    unsupported("return_tokens_as_token_ids", off, NO_COMPARED),
    unsupported("cache_salt", never, NO_COMPARED),
];

/// Parameters that tokenizing does not support.
pub(crate) const TOKENIZE: &[Unsupported] = &[
    unsupported(
        "return_token_strs",
        off,
        "is not supported; `with_pieces` is.",
    ),
    unsupported(
        "messages",
        empty,
        "is not supported; /apply-template renders a conversation and gives its tokens.",
    ),
];

/// Parameters that rendering a template does not support.
pub(crate) const TEMPLATE: &[Unsupported] = &[
    unsupported("chat_template", never, NO_TEMPLATE),
    unsupported("chat_template_kwargs", empty, NO_TEMPLATE),
    unsupported("add_generation_prompt", on, NO_TEMPLATE),
    unsupported("continue_final_message", off, NO_TEMPLATE),
    unsupported("documents", empty, NO_TEMPLATE),
    unsupported("tools", empty, NO_TOOLS),
];

/// Parameters that completions do not support.
pub(crate) const COMPLETIONS: &[Unsupported] = &[unsupported(
    "suffix",
    |value| one_of(value, &[""]),
    "is not supported: incant does not fill in the middle.",
)];
