//! Unsupported parameters of OpenAI's API and of other servers.
//!
//! A request that needs one is refused with a clear message: an answer that silently ignores a
//! parameter would be worse than none. Each entry has the values that need no support (clients like
//! to send the defaults) and the message for all others.

mod table;

use serde::Deserialize;

use super::errors::ApiError;
use super::fields::{Fields, Object, RawField};
pub(crate) use table::{CHAT, COMPARE, COMPLETIONS, EVERYWHERE, TEMPLATE, TOKENIZE};

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
