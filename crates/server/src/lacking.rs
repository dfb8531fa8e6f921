//! Unsupported parameters of OpenAI's API and of other servers.
//!
//! A request that needs one is refused with a clear message: an answer that silently ignores a
//! parameter would be worse than none. Each entry has the values that need no support (clients like
//! to send the defaults) and the message for all others.

use serde::Deserialize;

use super::errors::ApiError;
use super::fields::{Fields, Given, Object};

/// One unsupported parameter.
pub(crate) struct Lacking {
    field: &'static str,
    /// Returns whether a value other than null needs no support.
    harmless: fn(Given<'_>) -> bool,
    /// The end of the sentence "`field` …".
    why: &'static str,
}

const fn lacking(
    field: &'static str,
    harmless: fn(Given<'_>) -> bool,
    why: &'static str,
) -> Lacking {
    Lacking {
        field,
        harmless,
        why,
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

fn empty(value: Given<'_>) -> bool {
    value.read::<Empty>().is_some()
}

/// Returns whether a value turns reasoning off, in the ways of other APIs.
fn no_thinking(value: Given<'_>) -> bool {
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

fn never(_: Given<'_>) -> bool {
    false
}

fn anything(_: Given<'_>) -> bool {
    true
}

fn off(value: Given<'_>) -> bool {
    value.read() == Some(false)
}

fn on(value: Given<'_>) -> bool {
    value.read() == Some(true)
}

fn number(value: Given<'_>) -> Option<f64> {
    value.read()
}

fn zero(value: Given<'_>) -> bool {
    number(value) == Some(0.0)
}

fn one_of(value: Given<'_>, words: &[&str]) -> bool {
    value
        .read::<String>()
        .is_some_and(|word| words.contains(&&*word))
}

fn one(value: Given<'_>) -> bool {
    number(value) == Some(1.0)
}

fn not_above_zero(value: Given<'_>) -> bool {
    number(value).is_some_and(|number| number <= 0.0)
}

fn below_zero(value: Given<'_>) -> bool {
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
pub(crate) const EVERYWHERE: &[Lacking] = &[
    lacking("use_beam_search", off, NO_SEARCH),
    lacking("num_beams", one, NO_SEARCH),
    lacking("early_stopping", off, NO_SEARCH),
    lacking("length_penalty", one, NO_SEARCH),
    lacking("mirostat", zero, NO_SAMPLER),
    lacking("mirostat_mode", zero, NO_SAMPLER),
    lacking("mirostat_tau", anything, ""),
    lacking("mirostat_eta", anything, ""),
    lacking("dynatemp_range", zero, NO_SAMPLER),
    lacking("dynatemp_exponent", anything, ""),
    lacking("dynamic_temperature", off, NO_SAMPLER),
    lacking("adaptive_target", below_zero, NO_SAMPLER),
    lacking("adaptive_decay", anything, ""),
    lacking("tfs", one, NO_SAMPLER),
    lacking("tfs_z", one, NO_SAMPLER),
    lacking("top_a", zero, NO_SAMPLER),
    lacking("epsilon_cutoff", zero, NO_SAMPLER),
    lacking("eta_cutoff", zero, NO_SAMPLER),
    lacking("smoothing_factor", zero, NO_SAMPLER),
    lacking("penalty_alpha", zero, NO_SAMPLER),
    lacking("no_repeat_ngram_size", zero, NO_SAMPLER),
    lacking("encoder_repetition_penalty", one, NO_SAMPLER),
    lacking("min_keep", zero, NO_SAMPLER),
    lacking(
        "samplers",
        never,
        "is not supported: the order of samplers is fixed, and each is off unless it is asked for.",
    ),
    lacking(
        "repeat_last_n",
        |value| number(value) == Some(-1.0),
        "can only be -1: `repetition_penalty` counts the whole answer.",
    ),
    lacking("logits_processors", empty, NO_SAMPLER),
    lacking("vllm_xargs", empty, NO_SAMPLER),
    lacking(
        "bad_words_ids",
        empty,
        "is not supported; `bad_words` takes texts.",
    ),
    lacking("force_words_ids", empty, NO_SEARCH),
    lacking(
        "ban_eos_token",
        off,
        "is not supported; `ignore_eos` keeps an answer going.",
    ),
    lacking(
        "guidance_scale",
        one,
        "is not supported; `guidance` is 1 less.",
    ),
    lacking(
        "negative_prompt",
        |value| one_of(value, &[""]),
        "is not supported; `guidance` leads away from a prompt.",
    ),
    lacking(
        "n_predict",
        below_zero,
        "is not supported; `max_tokens` is what it is called here.",
    ),
    lacking("t_max_predict_ms", not_above_zero, NO_LIMIT),
    lacking("t_max_prompt_ms", not_above_zero, NO_LIMIT),
    lacking("n_indent", zero, NO_GRAMMAR),
    lacking("prompt_embeds", never, NO_EMBEDDINGS),
    lacking("inputs_embeds", never, NO_EMBEDDINGS),
    lacking("image_data", empty, NO_EMBEDDINGS),
    lacking("multi_modal_data", empty, NO_EMBEDDINGS),
    lacking("mm_processor_kwargs", empty, NO_EMBEDDINGS),
    lacking(
        "kv_transfer_params",
        empty,
        "is not supported: KV stays where it is.",
    ),
    lacking(
        "lora",
        empty,
        "is not supported: an adapter is named in the model id (`MODEL+ADAPTER`).",
    ),
    lacking(
        "lora_request",
        empty,
        "is not supported: an adapter is named in the model id (`MODEL+ADAPTER`).",
    ),
    lacking("thinking_token_budget", never, NO_REASONING),
    lacking("thinking", no_thinking, NO_REASONING),
    lacking("reasoning", no_thinking, NO_REASONING),
    lacking(
        "priority",
        zero,
        "is not supported: who comes first is served first.",
    ),
    lacking(
        "n_probs",
        zero,
        "is not supported; `logprobs` asks for log-probabilities.",
    ),
    lacking("post_sampling_probs", off, NO_REPORT),
    lacking("logprob_token_ids", empty, NO_REPORT),
    lacking("return_token_strs", off, NO_REPORT),
    lacking(
        "return_tokens",
        off,
        "is not supported; `return_token_ids` is.",
    ),
    lacking("return_progress", off, NO_REPORT),
    lacking("timings_per_token", off, NO_REPORT),
    lacking("response_fields", empty, NO_REPORT),
    lacking("return_hidden_states", off, NO_REPORT),
    lacking("structural_tag", never, NO_GRAMMAR),
    lacking("grammar_triggers", empty, NO_GRAMMAR),
    lacking("guided_whitespace_pattern", never, NO_GRAMMAR),
    lacking("regex", never, NO_GRAMMAR),
    lacking("ebnf", never, NO_GRAMMAR),
    lacking("stop_regex", empty, NO_GRAMMAR),
    lacking(
        "prompt_logprobs",
        never,
        "is not supported; /v1/completions with `echo` and `logprobs` scores a prompt.",
    ),
    lacking(
        "include_stop_str_in_output",
        off,
        "is not supported: the stop text is never part of the answer.",
    ),
    lacking(
        "skip_special_tokens",
        on,
        "cannot be turned off: control tokens have no text.",
    ),
    lacking("guided_json", never, NO_GRAMMAR),
    lacking("guided_regex", never, NO_GRAMMAR),
    lacking("guided_choice", never, NO_GRAMMAR),
    lacking("guided_grammar", never, NO_GRAMMAR),
    lacking("structured_outputs", never, NO_GRAMMAR),
    lacking("json_schema", empty, NO_GRAMMAR),
    lacking("grammar", |value| one_of(value, &[""]), NO_GRAMMAR),
    lacking(
        "response_format",
        |value| value.read::<Object<TextFormat>>().is_some(),
        "can only be {\"type\": \"text\"}: incant does not constrain answers to a format.",
    ),
    // These concern OpenAI's own service and change no answer.
    lacking("user", |value| value.is_text(), "must be a string."),
    lacking("metadata", |value| value.is_object(), "must be an object."),
    lacking("safety_identifier", anything, ""),
    lacking("prompt_cache_key", anything, ""),
    lacking("prompt_cache_retention", anything, ""),
    lacking("cache_prompt", anything, ""),
    lacking("store", off, "is not supported: incant keeps no answers."),
    lacking(
        "service_tier",
        |value| one_of(value, &["auto", "default"]),
        "can only be `auto` or `default`.",
    ),
];

/// Parameters that chat does not support.
pub(crate) const CHAT: &[Lacking] = &[
    lacking("tools", empty, NO_TOOLS),
    lacking("functions", empty, NO_TOOLS),
    lacking(
        "tool_choice",
        |value| one_of(value, &["none", "auto"]),
        NO_TOOLS,
    ),
    lacking(
        "function_call",
        |value| one_of(value, &["none", "auto"]),
        NO_TOOLS,
    ),
    lacking(
        "parallel_tool_calls",
        |value| value.read::<bool>().is_some(),
        "must be true or false.",
    ),
    lacking("audio", never, NO_AUDIO),
    lacking(
        "modalities",
        |value| value.read::<Vec<Text>>().is_some(),
        NO_AUDIO,
    ),
    lacking(
        "prediction",
        never,
        "is not supported: incant does not read predicted output.",
    ),
    lacking(
        "web_search_options",
        never,
        "is not supported: incant does not search the web.",
    ),
    lacking(
        "reasoning_effort",
        |value| one_of(value, &["none"]),
        "is not supported: incant has no reasoning mode.",
    ),
    lacking(
        "verbosity",
        |value| one_of(value, &["medium"]),
        "is not supported: ask for it in a message.",
    ),
    lacking(
        "echo",
        off,
        "is not supported in chat; /v1/completions has it.",
    ),
    lacking("chat_template", never, NO_TEMPLATE),
    lacking("chat_template_kwargs", empty, NO_TEMPLATE),
    lacking("add_generation_prompt", on, NO_TEMPLATE),
    lacking("continue_final_message", off, NO_TEMPLATE),
    lacking("documents", empty, NO_TEMPLATE),
    lacking(
        "add_special_tokens",
        off,
        "is not supported in chat: the template says how a conversation begins.",
    ),
];

/// Parameters that comparisons do not support, besides those of chat.
pub(crate) const COMPARE: &[Lacking] = &[
    lacking("truncate_prompt_tokens", never, NO_COMPARED),
    lacking("return_token_ids", off, NO_COMPARED),
    lacking("return_tokens_as_token_ids", off, NO_COMPARED),
    lacking("cache_salt", never, NO_COMPARED),
];

/// Parameters that tokenizing does not support.
pub(crate) const TOKENIZE: &[Lacking] = &[
    lacking(
        "return_token_strs",
        off,
        "is not supported; `with_pieces` is.",
    ),
    lacking(
        "messages",
        empty,
        "is not supported; /apply-template renders a conversation and gives its tokens.",
    ),
];

/// Parameters that rendering a template does not support.
pub(crate) const TEMPLATE: &[Lacking] = &[
    lacking("chat_template", never, NO_TEMPLATE),
    lacking("chat_template_kwargs", empty, NO_TEMPLATE),
    lacking("add_generation_prompt", on, NO_TEMPLATE),
    lacking("continue_final_message", off, NO_TEMPLATE),
    lacking("documents", empty, NO_TEMPLATE),
    lacking("tools", empty, NO_TOOLS),
];

/// Parameters that completions do not support.
pub(crate) const COMPLETIONS: &[Lacking] = &[lacking(
    "suffix",
    |value| one_of(value, &[""]),
    "is not supported: incant does not fill in the middle.",
)];

/// Refuses a request that needs one of the unsupported `features`.
pub(crate) fn refuse(fields: &mut Fields<'_>, features: &[Lacking]) -> Result<(), ApiError> {
    for Lacking {
        field,
        harmless,
        why,
    } in features
    {
        if fields.take(field).is_some_and(|value| !harmless(value)) {
            return Err(ApiError::invalid(*field, format!("`{field}` {why}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn verdict(body: Value, features: &[Lacking]) -> Result<(), Option<String>> {
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
