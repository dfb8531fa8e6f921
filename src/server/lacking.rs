//! Features of OpenAI's API and of other servers that incant does not have.
//!
//! Asking for one is a clear refusal: an answer that silently lacks what was
//! asked for would be worse than none. Each entry says which values ask for
//! nothing (clients like to send the defaults) and what to tell otherwise.

use serde_json::Value;

use super::errors::ApiError;
use super::fields::Fields;

/// One feature that is not there.
pub(crate) struct Lacking {
    /// The field that asks for it.
    field: &'static str,
    /// Whether a value other than null asks for nothing.
    harmless: fn(&Value) -> bool,
    /// The end of the sentence "`field` …".
    why: &'static str,
}

const fn lacking(field: &'static str, harmless: fn(&Value) -> bool, why: &'static str) -> Lacking {
    Lacking {
        field,
        harmless,
        why,
    }
}

fn empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
        || value.as_object().is_some_and(|map| map.is_empty())
}

fn never(_: &Value) -> bool {
    false
}

fn anything(_: &Value) -> bool {
    true
}

fn off(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn on(value: &Value) -> bool {
    *value == Value::Bool(true)
}

fn zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn one_of(value: &Value, words: &[&str]) -> bool {
    value.as_str().is_some_and(|word| words.contains(&word))
}

const NO_TOOLS: &str = "is not supported: incant has no tool calls.";
const NO_GRAMMAR: &str = "is not supported: incant does not constrain answers to a format.";
const NO_AUDIO: &str = "is not supported: incant reads and writes text only.";
const NO_TEMPLATE: &str =
    "is not supported: how a conversation is written is chosen by the model id (`MODEL@PROFILE`).";

/// What neither endpoint has.
pub(crate) const EVERYWHERE: &[Lacking] = &[
    lacking("use_beam_search", off, "is not supported: incant samples."),
    lacking(
        "min_tokens",
        zero,
        "is not supported; `ignore_eos` keeps an answer going.",
    ),
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
        |value| {
            value
                .get("type")
                .is_some_and(|kind| one_of(kind, &["text"]))
        },
        "can only be {\"type\": \"text\"}: incant does not constrain answers to a format.",
    ),
    // What these say concerns OpenAI's own service; they change no answer.
    lacking("user", Value::is_string, "must be a string."),
    lacking("metadata", Value::is_object, "must be an object."),
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

/// What chat does not have.
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
        Value::is_boolean,
        "must be true or false.",
    ),
    lacking("audio", never, NO_AUDIO),
    lacking(
        "modalities",
        |value| {
            value
                .as_array()
                .is_some_and(|list| list.iter().all(|kind| one_of(kind, &["text"])))
        },
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
];

/// What completions do not have.
pub(crate) const COMPLETIONS: &[Lacking] = &[lacking(
    "suffix",
    |value| one_of(value, &[""]),
    "is not supported: incant does not fill in the middle.",
)];

/// Refuses a request that asks for one of `features`.
pub(crate) fn refuse(fields: &mut Fields, features: &[Lacking]) -> Result<(), ApiError> {
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
    use serde_json::json;

    use super::*;

    fn verdict(body: Value, features: &[Lacking]) -> Result<(), Option<String>> {
        let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
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
            "min_tokens": 0, "service_tier": "auto", "skip_special_tokens": true, "guided_json": null,
        });
        assert_eq!(verdict(everywhere, EVERYWHERE), Ok(()));
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
            json!({"min_tokens": 3}),
            json!({"store": true}),
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
