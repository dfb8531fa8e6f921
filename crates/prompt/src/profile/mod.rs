//! Profiles: alignment prompts as minijinja templates with front matter.
//!
//! A [`Profile`] is one file: a constant prefix, prefilled once and shared, and the markup of
//! the turns that follow it. A [`ChatTemplate`] is the one that an aligned model's GGUF
//! contains. Both are a [`Rendering`]: messages in, one text out, left open at the answer.
//!
//! A client's text is data, and must not act as markup (prompt injection). Two measures ensure
//! it: text that looks like a role marker is escaped (see [`markers`]; those of a chat template
//! are learnt by trying it), and text that would be read as a special token is broken up by the
//! `protect` function that the caller passes in, with a guard character chosen by
//! [`guard_for`].

mod chat_template;
mod check;
mod error;
mod files;
mod front_matter;
mod jinja;
mod limits;
pub mod markers;
mod markup;
mod percent;
mod portable;
mod python;
mod rendering;
mod step_limits;
mod string_methods;
mod template;
mod urlize;
mod wordwrap;

pub use chat_template::ChatTemplate;
pub use check::check;
pub use error::ProfileError;
pub use files::is_builtin;
pub use files::{Library, builtin, check_file, load};
pub use front_matter::name_problem as profile_name_problem;
pub use front_matter::{GuidanceDefaults, SamplingDefaults};
pub use front_matter::{MAX_BREAKER_BYTES, MAX_BREAKERS, MAX_DRY_TOKENS, breakers_problem};
pub use incant_gguf::{CHAT_TEMPLATE_KEY, MARKERS_KEY};
pub use markup::{Part, PartKind, SplitFn};
pub use portable::{Portable, Unportable};
pub use rendering::{Rendering, guard_for};
pub use template::Profile;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// The role of the speaker.
    pub role: Role,
    /// The text.
    pub content: String,
}

/// The role of a message's speaker.
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
    /// The role's name in templates.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A conversation whose last question is emptied: the text of the user's last turn, which may
/// consist of several messages. `None` if there is no message of a user.
pub fn without_question(messages: &[Message]) -> Option<Vec<Message>> {
    let last = messages.iter().rposition(|m| m.role == Role::User)?;
    // System messages do not end a turn.
    let mut before = messages[..last].iter();
    let first = before
        .rposition(|message| message.role == Role::Assistant)
        .map_or(0, |answer| answer + 1);
    let emptied = messages.iter().enumerate().filter_map(|(at, message)| {
        let is_question = message.role == Role::User && (first..=last).contains(&at);
        match (is_question, at == last) {
            (true, true) => Some(Message::new(Role::User, "")),
            (true, false) => None,
            (false, _) => Some(message.clone()),
        }
    });
    Some(emptied.collect())
}

impl Message {
    /// A message with this role and content.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message {
            role,
            content: content.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_all_of_the_users_last_turn() {
        let told = |turns: &[(Role, &str)]| -> Vec<Message> {
            let turns = turns.iter();
            turns
                .map(|(role, text)| Message::new(*role, *text))
                .collect()
        };
        use Role::{Assistant, System, User};
        let messages = told(&[
            (System, "be kind"),
            (User, "one"),
            (Assistant, "1"),
            (User, "two"),
            (System, "soon"),
            (User, "three"),
            (Assistant, "and"),
        ]);
        let expected = told(&[
            (System, "be kind"),
            (User, "one"),
            (Assistant, "1"),
            (System, "soon"),
            (User, ""),
            (Assistant, "and"),
        ]);
        assert_eq!(without_question(&messages), Some(expected));
        assert_eq!(
            without_question(&told(&[(User, "a"), (User, "b")])),
            Some(told(&[(User, "")]))
        );
        assert_eq!(without_question(&told(&[(System, "be kind")])), None);
    }
}
