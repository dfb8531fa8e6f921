//! Unsupported parameters of OpenAI's API and of other servers.
//!
//! A request that needs one is refused with a clear message: an answer that silently ignores a
//! parameter would be worse than none. Each entry has the values that need no support (clients like
//! to send the defaults) and the message for all others.

use serde::Deserialize;

use super::errors::ApiError;
use super::fields::{Fields, Object, RawField};

/// One unsupported parameter.
pub(crate) struct Unsupported {
    field: &'static str,
    /// Returns whether a value other than null needs no support.
    is_noop: fn(RawField<'_>) -> bool,
    /// The end of the sentence "`field` …".
    reason: &'static str,
}

const fn unsupported(
    field: &'static str,
    is_noop: fn(RawField<'_>) -> bool,
    reason: &'static str,
) -> Unsupported {
    Unsupported {
        field,
        is_noop,
        reason,
    }
}

/// An empty object or list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// The word `text`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Text;

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(word: String) -> Result<Text, Self::Error> {
        match &*word {
            "text" => Ok(Text),
            _ => Err("only `text` is"),
        }
    }
}

/// A response format of plain text.
#[derive(Deserialize)]
struct TextFormat {
    #[serde(rename = "type")]
    _kind: Text,
}

fn empty(value: RawField<'_>) -> bool {
    value.read::<Empty>().is_some()
}

/// Returns whether a value turns reasoning off, in the ways of other APIs.
fn no_thinking(value: RawField<'_>) -> bool {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thinking {
        #[serde(rename = "type")]
        kind: Option<String>,
        enabled: Option<bool>,
        effort: Option<String>,
    }
    let is_off = |thinking: Thinking| {
        thinking.kind.is_none_or(|kind| kind == "disabled")
            && thinking.enabled != Some(true)
            && thinking.effort.is_none_or(|effort| effort == "none")
    };
    off(value) || value.read().is_some_and(is_off)
}

fn never(_: RawField<'_>) -> bool {
    false
}

fn anything(_: RawField<'_>) -> bool {
    true
}

fn off(value: RawField<'_>) -> bool {
    value.read() == Some(false)
}

fn on(value: RawField<'_>) -> bool {
    value.read() == Some(true)
}

fn number(value: RawField<'_>) -> Option<f64> {
    value.read()
}

fn zero(value: RawField<'_>) -> bool {
    number(value) == Some(0.0)
}

fn one_of(value: RawField<'_>, words: &[&str]) -> bool {
    value
        .read::<String>()
        .is_some_and(|word| words.contains(&&*word))
}

fn one(value: RawField<'_>) -> bool {
    number(value) == Some(1.0)
}

fn not_above_zero(value: RawField<'_>) -> bool {
    number(value).is_some_and(|number| number <= 0.0)
}

fn below_zero(value: RawField<'_>) -> bool {
    number(value).is_some_and(|number| number < 0.0)
}

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

/// Refuses a request that needs one of the unsupported `features`.
pub(crate) fn refuse(fields: &mut Fields<'_>, features: &[Unsupported]) -> Result<(), ApiError> {
    for Unsupported {
        field,
        is_noop,
        reason,
    } in features
    {
        if fields.take(field).is_some_and(|value| !is_noop(value)) {
            return Err(ApiError::invalid(*field, format!("`{field}` {reason}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn verdict(body: Value, features: &[Unsupported]) -> Result<(), Option<String>> {
        let text = body.to_string();
        let mut fields = Fields::parse(text.as_bytes()).unwrap();
        match refuse(&mut fields, features) {
            Ok(()) => {
                assert_eq!(fields.unknown().count(), 0, "{body}: known now");
                Ok(())
            }
            Err(ApiError::Invalid { param, .. }) => Err(param),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn asking_for_nothing_is_fine() {
        let chat = json!({
            "tools": [], "tool_choice": "none", "modalities": ["text"], "audio": null, "verbosity": "medium",
            "parallel_tool_calls": true, "echo": false, "reasoning_effort": "none",
        });
        assert_eq!(verdict(chat, CHAT), Ok(()));
        let everywhere = json!({
            "response_format": {"type": "text"}, "user": "u", "metadata": {"a": "b"}, "store": false,
            "mirostat": 0, "length_penalty": 1.0, "n_predict": -1, "repeat_last_n": -1, "lora": [],
            "n_probs": 0, "t_max_predict_ms": -1, "dynatemp_range": 0.0, "service_tier": "auto", "skip_special_tokens": true, "guided_json": null,
        });
        assert_eq!(verdict(everywhere, EVERYWHERE), Ok(()));
        for none in [
            json!({"thinking": {"type": "disabled"}}),
            json!({"thinking": false, "reasoning": {}}),
            json!({"reasoning": {"effort": "none"}}),
            json!({"reasoning": {"enabled": false}}),
        ] {
            assert_eq!(verdict(none, EVERYWHERE), Ok(()));
        }
        assert_eq!(verdict(json!({"suffix": ""}), COMPLETIONS), Ok(()));
    }

    #[test]
    fn asking_for_what_is_not_there_is_refused_by_name() {
        let chat = [
            json!({"tools": [{"type": "function"}]}),
            json!({"tool_choice": "required"}),
            json!({"functions": [{}]}),
            json!({"audio": {"voice": "x"}}),
            json!({"modalities": ["text", "audio"]}),
            json!({"echo": true}),
        ];
        let everywhere = [
            json!({"response_format": {"type": "json_schema"}}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"response_format": "text"}),
            json!({"store": true}),
            json!({"prompt_embeds": "AAAA"}),
            json!({"structural_tag": {"triggers": []}}),
            json!({"mirostat": 2}),
            json!({"dynatemp_range": 0.5}),
            json!({"samplers": ["top_k"]}),
            json!({"length_penalty": 1.2}),
            json!({"thinking_token_budget": 100}),
            json!({"thinking": {"type": "enabled", "budget_tokens": 100}}),
            json!({"thinking": true}),
            json!({"reasoning": {"effort": "low"}}),
            json!({"reasoning": {"effort": "none", "max_tokens": 100}}),
            json!({"t_max_predict_ms": 500}),
            json!({"n_predict": 100}),
            json!({"lora": [{"id": 0, "scale": 0.5}]}),
            json!({"n_probs": 3}),
            json!({"post_sampling_probs": true}),
            json!({"logprob_token_ids": [1]}),
            json!({"repeat_last_n": 64}),
            json!({"user": 7}),
            json!({"prompt_logprobs": 1}),
        ];
        let tables = [(chat.to_vec(), CHAT), (everywhere.to_vec(), EVERYWHERE)];
        for (bodies, table) in tables {
            for body in bodies {
                let field = body.as_object().unwrap().keys().next().cloned();
                assert_eq!(verdict(body.clone(), table), Err(field), "{body}");
            }
        }
        assert_eq!(
            verdict(json!({"suffix": "end"}), COMPLETIONS),
            Err(Some("suffix".into()))
        );
    }
}
