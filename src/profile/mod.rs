//! Profiles: alignment prompts as minijinja templates with front matter.
//!
//! A [`Profile`] is one file: what is constant (its prefix, prefilled once and
//! shared) and how a conversation's turns are written after it. A
//! [`ChatTemplate`] is what an aligned model brings along in its GGUF. Both are
//! a [`Rendering`]: messages in, one text out, left open at the answer.
//!
//! A client's text is data. Two things keep it so: a line of it that looks like
//! a role marker is escaped (see [`markers`]), and whatever in it would be read
//! as a control token is broken up by the `protect` function that the caller
//! passes in, with a guard character chosen by [`guard_for`].

mod bounds;
mod chat_template;
mod error;
mod files;
mod front;
mod limits;
pub mod markers;
mod python;
mod rendering;
mod template;

pub use chat_template::ChatTemplate;
pub use error::ProfileError;
pub use files::{Library, builtin, load};
pub use front::SamplingDefaults;
pub(crate) use front::{MAX_BREAKER_BYTES, MAX_BREAKERS, MOST_DRY_TOKENS, breakers_problem};
pub use rendering::{Rendering, guard_for};
pub use template::Profile;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What they say.
    pub content: String,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `system` or `developer`.
    #[serde(alias = "developer")]
    System,
    /// `user`.
    User,
    /// `assistant`.
    Assistant,
}

impl Role {
    /// The name that templates know the role by.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message {
            role,
            content: content.into(),
        }
    }
}
