//! Server responses, as far as the program reads them. Fields that a server omits are absent,
//! not guessed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use crate::failure::Failure;
use crate::failure::excerpt;
use incant_api::error_message;

/// Maximum number of arms read from a server's list, and maximum length of their ids in bytes.
pub const MOST_ARMS: usize = 4096;
const LONGEST_ID: usize = 512;

/// An arm that the server offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arm {
    /// The model id of the API.
    pub id: String,
    /// The model whose weights it uses, if the server reports it.
    pub root: Option<String>,
    /// Its profile, if the server knows profiles.
    pub profile: Option<String>,
    /// The context length in tokens, if the list has it.
    pub context: Option<u64>,
    /// The arm's own sampling defaults, if the server reports them. Parameters that are not
    /// among them have the defaults of OpenAI's API.
    pub sampling: Option<Map<String, Value>>,
}

/// A profile that arms answer under, if the server knows profiles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// The part after the `@` in an arm's id.
    pub id: String,
    /// A short title.
    pub title: String,
    /// Its description.
    pub description: String,
    /// The language that it is written in, such as `en`.
    pub language: String,
    /// The models that use it by default, when their id names no profile.
    pub default_for: Vec<String>,
}

/// Parses the response of `GET /v1/profiles`.
pub fn profiles(body: &Value) -> Vec<Profile> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let all = list(&body["data"]).into_iter().take(MOST_ARMS);
    let profile = |profile: Value| Profile {
        id: text(&profile["id"]),
        title: text(&profile["title"]),
        description: excerpt(text(&profile["description"])),
        language: text(&profile["language"]),
        default_for: list(&profile["default_for"]).iter().map(text).collect(),
    };
    all.map(profile).collect()
}

/// Parses the response of `GET /v1/models`.
pub fn arms(body: &Value) -> Vec<Arm> {
    let text = |value: &Value, name: &str| value[name].as_str().map(str::to_owned);
    let list = body["data"].as_array().map_or(&[][..], Vec::as_slice);
    let named = list.iter().filter_map(|model| {
        let id = text(model, "id").filter(|id| id.len() <= LONGEST_ID)?;
        let mut sampling = model["sampling"].as_object().cloned();
        if let (Some(sampling), guidance @ Value::Number(_)) = (&mut sampling, &model["guidance"]) {
            sampling.insert("guidance".into(), guidance.clone());
        }
        Some(Arm {
            id,
            root: text(model, "root"),
            profile: text(model, "profile"),
            context: model["max_model_len"]
                .as_u64()
                .or_else(|| model["meta"]["n_ctx"].as_u64()),
            sampling,
        })
    });
    named.take(MOST_ARMS).collect()
}

/// Token usage of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Tokens of the prompt that came from the cache, if the server reports them.
    #[serde(default)]
    pub cached_tokens: Option<u64>,
}

impl Usage {
    fn read(value: &Value) -> Option<Usage> {
        Some(Usage {
            prompt_tokens: value["prompt_tokens"].as_u64()?,
            completion_tokens: value["completion_tokens"].as_u64()?,
            cached_tokens: value["prompt_tokens_details"]["cached_tokens"].as_u64(),
        })
    }
}

/// An alternative token.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Alternative {
    /// Its text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f64,
}

/// Another arm's score of a token.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Score {
    /// The arm, as an index into the comparison's.
    pub arm: usize,
    /// The log-probability under that arm.
    pub logprob: f64,
    /// Its rank under that arm; 1 is the likeliest.
    pub rank: u64,
    /// The KL divergence between the two arms' distributions at this place, in nats.
    pub kl: f64,
    /// The likeliest tokens under that arm.
    pub top_logprobs: Vec<Alternative>,
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Token {
    /// Its text for display.
    pub token: String,
    /// The bytes that it adds to the text.
    #[serde(default)]
    pub bytes: Option<Vec<u8>>,
    /// Its log-probability.
    pub logprob: f64,
    /// Its rank; 1 is the likeliest.
    #[serde(default)]
    pub rank: Option<u64>,
    /// The likeliest tokens.
    #[serde(default)]
    pub top_logprobs: Vec<Alternative>,
    /// The other arms' scores.
    #[serde(default)]
    pub scores: Vec<Score>,
}

impl Token {
    /// The number of bytes that it adds to the text.
    pub fn length(&self) -> usize {
        self.bytes.as_ref().map_or(self.token.len(), Vec::len)
    }
}

/// A chunk of a streamed chat completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// The next part of the text.
    pub content: String,
    /// Its tokens, if they were requested and the server sends them.
    pub tokens: Vec<Value>,
    /// The finish reason, at the end of the answer.
    pub finish: Option<String>,
    /// Token usage.
    pub usage: Option<Usage>,
    /// The profile that rendered the conversation, if the server reports it.
    pub profile: Option<String>,
}

/// Parses one event of a chat completion's stream, or the whole completion of a server that
/// does not stream.
///
/// # Errors
/// The server reports an error, or the data is not JSON.
pub fn chunk(data: &str) -> Result<Chunk, Failure> {
    let value = event(data)?;
    let choice = &value["choices"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let tokens = choice["logprobs"]["content"].as_array();
    let said = match choice.get("delta") {
        Some(delta) => delta,
        None => &choice["message"],
    };
    Ok(Chunk {
        content: text(&said["content"]),
        tokens: tokens.cloned().unwrap_or_default(),
        finish: choice["finish_reason"].as_str().map(str::to_owned),
        usage: Usage::read(&value["usage"]),
        profile: value["profile"].as_str().map(str::to_owned),
    })
}

/// The id of an arm without its options: guidance, or a mix.
pub fn plain_id(id: &str) -> &str {
    let wishes = [" guidance=", " against=", " plausible=", " mix="];
    let first = wishes.iter().filter_map(|wish| id.find(wish)).min();
    first.map_or(id, |first| &id[..first])
}

/// An arm's id, followed by the profile that answered in parentheses, unless the id names it.
pub fn with_profile(id: &str, profile: Option<&str>) -> String {
    match profile.filter(|profile| !id.contains(&format!("@{profile}"))) {
        Some(profile) => format!("{id} ({profile})"),
        None => id.to_owned(),
    }
}

fn event(data: &str) -> Result<Value, Failure> {
    let value: Value = serde_json::from_str(data)
        .map_err(|error| Failure::local(format!("the server sent no JSON ({error}): {data}")))?;
    match error_message(&value) {
        Some(message) => Err(Failure::local(message)),
        None => Ok(value),
    }
}

/// A chunk of a streamed comparison.
#[derive(Clone, Debug, PartialEq)]
pub enum CompareChunk {
    /// The arms and settings, as in a report.
    Begin {
        /// The arms.
        arms: Value,
        /// The settings.
        settings: Value,
    },
    /// More text of an arm's answer.
    Delta {
        /// The arm's index.
        arm: usize,
        /// The text.
        content: String,
    },
    /// The next tokens of an arm's answer, with all scores.
    Tokens {
        /// The arm's index.
        arm: usize,
        /// The tokens, as in a report.
        tokens: Vec<Value>,
    },
    /// An arm's answer has ended.
    End {
        /// The arm's index.
        arm: usize,
        /// The finish reason.
        finish: String,
        /// Token usage, if it can be parsed.
        usage: Option<Usage>,
        /// Token usage, as in a report.
        raw_usage: Value,
    },
    /// The summary, as in a report.
    Summary(Value),
    /// An event that this program does not know.
    Other,
}

/// Parses one event of a comparison's stream.
///
/// # Errors
/// The server reports an error, or the data is not JSON.
pub fn compare_chunk(data: &str) -> Result<CompareChunk, Failure> {
    let mut value = event(data)?;
    let arm = |part: &Value| part["arm"].as_u64().unwrap_or_default() as usize;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Some(fields) = value.as_object_mut() else {
        return Ok(CompareChunk::Other);
    };
    Ok(if let Some(mut begin) = fields.remove("begin") {
        CompareChunk::Begin {
            arms: begin["arms"].take(),
            settings: begin["settings"].take(),
        }
    } else if let Some(delta) = fields.get("delta") {
        CompareChunk::Delta {
            arm: arm(delta),
            content: text(&delta["content"]),
        }
    } else if let Some(mut part) = fields.remove("tokens") {
        let tokens = match part["tokens"].take() {
            Value::Array(tokens) => tokens,
            _ => Vec::new(),
        };
        CompareChunk::Tokens {
            arm: arm(&part),
            tokens,
        }
    } else if let Some(mut end) = fields.remove("end") {
        CompareChunk::End {
            arm: arm(&end),
            finish: text(&end["finish_reason"]),
            usage: Usage::read(&end["usage"]),
            raw_usage: end["usage"].take(),
        }
    } else if let Some(summary) = fields.remove("summary") {
        CompareChunk::Summary(summary)
    } else {
        CompareChunk::Other
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_context_is_found_where_different_servers_have_it() {
        let body = json!({"data": [
            {"id": "a", "max_model_len": 100},
            {"id": "b", "meta": {"n_ctx": 200, "n_ctx_train": 300}},
            {"id": "c"},
        ]});
        let found: Vec<_> = arms(&body).into_iter().map(|arm| arm.context).collect();
        assert_eq!(found, [Some(100), Some(200), None]);
    }

    #[test]
    fn usage_without_cached_tokens_says_that_nothing_is_known_of_them() {
        let data = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
        let usage = chunk(data).unwrap().usage.unwrap();
        assert_eq!(usage.cached_tokens, None);
    }

    #[test]
    fn the_profile_that_answered_is_shown_where_the_id_does_not_name_it() {
        let data = r#"{"profile":"urial-ja","choices":[]}"#;
        let profile = chunk(data).unwrap().profile;
        let shown = |id| with_profile(id, profile.as_deref());
        assert_eq!(shown("m"), "m (urial-ja)");
        assert_eq!(shown("m guidance=0.5"), "m guidance=0.5 (urial-ja)");
        assert_eq!(shown("m@urial-ja+x"), "m@urial-ja+x");
        assert_eq!(with_profile("m", None), "m");
    }

    #[test]
    fn what_is_wished_beside_an_arm_is_no_part_of_its_plain_id() {
        assert_eq!(plain_id("m@urial"), "m@urial");
        assert_eq!(plain_id("my model@a guidance=1 mix=b*2"), "my model@a");
        assert_eq!(plain_id("m mix=b*2 guidance=1"), "m");
    }

    #[test]
    fn an_error_in_a_stream_is_a_failure() {
        let data = r#"{"error": {"message": "out of memory"}}"#;
        assert_eq!(chunk(data).unwrap_err(), Failure::local("out of memory"));
        assert_eq!(
            compare_chunk(data).unwrap_err(),
            Failure::local("out of memory")
        );
    }

    #[test]
    fn a_completion_that_was_not_streamed_is_an_answer() {
        let data = json!({
            "object": "chat.completion",
            "choices": [{
                "message": {"role": "assistant", "content": "Hello"},
                "logprobs": {"content": [{"token": "Hello", "logprob": -0.5}]},
                "finish_reason": "stop",
            }],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        });
        let chunk = chunk(&data.to_string()).unwrap();
        assert_eq!(chunk.content, "Hello");
        assert_eq!(chunk.tokens.len(), 1);
        assert_eq!(chunk.finish.as_deref(), Some("stop"));
        assert_eq!(chunk.usage.unwrap().completion_tokens, 2);
    }

    #[test]
    fn what_an_arm_answers_with_is_read_where_the_server_tells() {
        let body = json!({"data": [
            {"id": "m@a", "sampling": {"temperature": 0.0}, "guidance": 0.5},
            {"id": "other"},
        ]});
        let arms = arms(&body);
        let own = arms[0].sampling.as_ref().unwrap();
        assert_eq!(json!(own), json!({"temperature": 0.0, "guidance": 0.5}));
        assert_eq!(arms[1].sampling, None);
        let body = json!({"data": [{"id": "a", "language": "en", "default_for": ["m"]}, {}]});
        let profiles = profiles(&body);
        assert_eq!(profiles[0].default_for, ["m"]);
        assert_eq!(profiles[1], Profile::default());
    }

    #[test]
    fn of_a_list_without_an_end_so_many_arms_are_read() {
        let model = |number: usize| json!({"id": format!("m{number}")});
        let long = json!({"id": "x".repeat(LONGEST_ID + 1)});
        let data: Vec<Value> = std::iter::once(long)
            .chain((0..10_000).map(model))
            .collect();
        let arms = arms(&json!({ "data": data }));
        assert_eq!(arms.len(), MOST_ARMS);
        assert_eq!(arms[0].id, "m0");
    }

    #[test]
    fn a_first_chunk_without_content_is_no_failure() {
        let data = r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#;
        assert_eq!(chunk(data).unwrap(), Chunk::default());
    }
}
