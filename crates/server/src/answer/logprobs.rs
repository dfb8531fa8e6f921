//! Log-probabilities in the formats of chat and of completions.

use std::collections::HashSet;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use incant_compare::token_json::{ZERO_PROBABILITY, finite, token_name};
use incant_runtime::Partners;
use incant_runtime::choice::{Alternative, Entry};

/// How log-probabilities name tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// By their text.
    Texts,
    /// As `token_id:ID`.
    Ids,
}

impl Names {
    /// Names tokens by id if `return_tokens_as_token_ids` is true.
    pub(crate) fn new(by_ids: bool) -> Names {
        if by_ids { Names::Ids } else { Names::Texts }
    }

    fn of(self, id: u32, bytes: &[u8]) -> String {
        match self {
            Names::Texts => token_name(bytes),
            Names::Ids => format!("token_id:{id}"),
        }
    }
}

/// The distribution that log-probabilities are taken from, if a guide or other arms shape the
/// answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) enum Measured {
    /// The arm's own distribution, without guidance.
    #[serde(rename = "without guidance")]
    Own,
    /// The mixture, over the tokens that could be chosen.
    #[serde(rename = "with guidance")]
    Mixture,
}

impl Measured {
    /// Returns the distribution that is reported for an answer with these partners; `None` without
    /// partners.
    pub(crate) fn of(partners: &Partners) -> Option<Measured> {
        match (partners.partners.is_empty(), partners.report_mixture) {
            (true, _) => None,
            (false, true) => Some(Measured::Mixture),
            (false, false) => Some(Measured::Own),
        }
    }
}

/// Log-probabilities in a chat answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChatLogprobs {
    /// One entry for each token; their `bytes` joined are the content.
    content: Vec<ChatToken>,
    /// Always null: a refusal is an answer like any other.
    refusal: Option<Vec<ChatToken>>,
    /// Absent if neither a guide nor another arm shapes the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<Measured>,
}

/// A token of a chat answer.
#[derive(Debug, Serialize, JsonSchema)]
struct ChatToken {
    /// Its text, or `bytes:\x..` if it is only part of a character. Empty for an end token.
    token: String,
    /// Log-softmax of the raw logits, before bias, penalties and temperature.
    logprob: f32,
    /// The bytes it contributed to the content.
    bytes: Vec<u8>,
    /// The most likely tokens at its position, best first.
    top_logprobs: Vec<ChatAlternative>,
}

/// An alternative to a chosen token.
#[derive(Debug, Serialize, JsonSchema)]
struct ChatAlternative {
    /// Written as in the entry that holds it; a control token is shown by its name.
    token: String,
    /// Measured as in the entry that holds it.
    logprob: f32,
    /// The bytes of `token`.
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(crate) fn new(
        entries: Vec<Entry>,
        names: Names,
        measured: Option<Measured>,
    ) -> ChatLogprobs {
        let alternative = |Alternative {
                               id, bytes, logprob, ..
                           }| ChatAlternative {
            token: names.of(id, &bytes),
            logprob: finite(logprob),
            bytes,
        };
        let token = |Entry {
                         id,
                         bytes,
                         logprob,
                         top,
                         ..
                     }| ChatToken {
            token: names.of(id, &bytes),
            // Chat echoes no prompt, so each token has a log-probability.
            logprob: logprob.map_or(ZERO_PROBABILITY, finite),
            bytes,
            top_logprobs: top.into_iter().map(alternative).collect(),
        };
        ChatLogprobs {
            content: entries.into_iter().map(token).collect(),
            refusal: None,
            measured,
        }
    }
}

/// Log-probabilities in a completion: four lists of the same length.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CompletionLogprobs {
    /// The tokens. One that is only part of a character is written `bytes:\x..`.
    tokens: Vec<String>,
    /// Log-softmax of the raw logits. Null for a prompt's first token, which nothing precedes.
    token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens at each position, always including the chosen one.
    top_logprobs: Vec<Option<TopLogprobs>>,
    /// Characters of `text` before the token, counted over all of a stream's chunks.
    text_offset: Vec<usize>,
    /// Absent if neither a guide nor another arm shapes the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<Measured>,
}

impl CompletionLogprobs {
    pub(crate) fn new(
        entries: Vec<Entry>,
        names: Names,
        measured: Option<Measured>,
    ) -> CompletionLogprobs {
        let top = |entry: &Entry| {
            let logprob = entry.logprob?;
            Some(TopLogprobs::of(entry, names, logprob))
        };
        CompletionLogprobs {
            tokens: entries
                .iter()
                .map(|entry| names.of(entry.id, &entry.bytes))
                .collect(),
            token_logprobs: entries
                .iter()
                .map(|entry| entry.logprob.map(finite))
                .collect(),
            top_logprobs: entries.iter().map(top).collect(),
            text_offset: entries.iter().map(|entry| entry.offset).collect(),
            measured,
        }
    }
}

/// Tokens and their log-probabilities, best first, written as one object.
#[derive(Debug, PartialEq)]
struct TopLogprobs(Vec<(String, f32)>);

impl TopLogprobs {
    /// Returns the entry's alternatives, with the entry itself among them. If two tokens have the
    /// same name, it goes to the chosen one, else to the likelier.
    fn of(entry: &Entry, written: Names, logprob: f32) -> TopLogprobs {
        let chosen = written.of(entry.id, &entry.bytes);
        let mut names = HashSet::new();
        let mut top = Vec::new();
        let mut add = |token: String, logprob: f32| {
            if names.insert(token.clone()) {
                top.push((token, finite(logprob)));
            }
        };
        for alternative in &entry.top {
            let token = written.of(alternative.id, &alternative.bytes);
            if alternative.chosen || token == chosen {
                add(chosen.clone(), logprob);
            } else {
                add(token, alternative.logprob);
            }
        }
        add(chosen, logprob);
        TopLogprobs(top)
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

impl JsonSchema for TopLogprobs {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TopLogprobs".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({"type": "object", "additionalProperties": {"type": "number"}})
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(bytes: &[u8], logprob: Option<f32>, top: &[(&[u8], f32, bool)]) -> Entry {
        let places = 0..;
        let top = top
            .iter()
            .zip(places)
            .map(|((bytes, logprob, chosen), id)| Alternative {
                id: if *chosen { 7 } else { id },
                bytes: bytes.to_vec(),
                logprob: *logprob,
                chosen: *chosen,
            });
        Entry {
            id: 7,
            bytes: bytes.to_vec(),
            offset: 3,
            logprob,
            rank: None,
            top: top.collect(),
        }
    }

    #[test]
    fn the_chosen_token_is_always_among_the_top_with_the_identical_float() {
        let odd = -0.1_f32; // not the f64 of the same digits
        let inside = entry(b"b", Some(odd), &[(b"a", -0.05, false), (b"b", odd, true)]);
        let outside = entry(b"z", Some(odd), &[(b"a", -0.05, false)]);
        let namesake = entry(b"a", Some(odd), &[(b"a", -0.05, false)]);
        let first = entry(b"x", None, &[]);
        let logprobs =
            CompletionLogprobs::new(vec![inside, outside, namesake, first], Names::Texts, None);
        let written = serde_json::to_value(
            serde_json::from_str::<serde_json::Value>(&serde_json::to_string(&logprobs).unwrap())
                .unwrap(),
        )
        .unwrap();
        let expected = json!({
            "tokens": ["b", "z", "a", "x"],
            "token_logprobs": [-0.1, -0.1, -0.1, null],
            "top_logprobs": [{"a": -0.05, "b": -0.1}, {"a": -0.05, "z": -0.1}, {"a": -0.1}, null],
            "text_offset": [3, 3, 3, 3],
        });
        assert_eq!(written, expected);
    }

    #[test]
    fn chat_gives_bytes_beside_names() {
        let entries = vec![entry(
            b"\xf0",
            Some(-1.0),
            &[(b"\xf0", -1.0, true), (b"<eos>", f32::NEG_INFINITY, false)],
        )];
        let expected = json!({
            "content": [{
                "token": "bytes:\\xf0", "logprob": -1.0, "bytes": [240],
                "top_logprobs": [
                    {"token": "bytes:\\xf0", "logprob": -1.0, "bytes": [240]},
                    {"token": "<eos>", "logprob": -9999.0, "bytes": [60, 101, 111, 115, 62]},
                ],
            }],
            "refusal": null,
        });
        assert_eq!(
            serde_json::to_value(ChatLogprobs::new(entries, Names::Texts, None)).unwrap(),
            expected
        );
    }

    #[test]
    fn tokens_can_be_written_by_their_ids() {
        let some = || {
            vec![entry(
                b"b",
                Some(-1.0),
                &[(b"a", -0.5, false), (b"b", -1.0, true)],
            )]
        };
        let chat = ChatLogprobs::new(some(), Names::Ids, None);
        let chat = serde_json::to_value(chat).unwrap();
        let token = &chat["content"][0];
        assert_eq!(
            (&token["token"], &token["bytes"]),
            (&json!("token_id:7"), &json!([98]))
        );
        assert_eq!(token["top_logprobs"][0]["token"], "token_id:0");
        assert_eq!(token["top_logprobs"][1]["token"], "token_id:7");
        let completion = CompletionLogprobs::new(some(), Names::Ids, None);
        let completion = serde_json::to_value(completion).unwrap();
        assert_eq!(completion["tokens"], json!(["token_id:7"]));
        let top = json!({"token_id:0": -0.5, "token_id:7": -1.0});
        assert_eq!(completion["top_logprobs"], json!([top]));
    }
}
