//! The one thing a request needs of all this: messages in, a text out.

use std::collections::HashSet;
use std::sync::Arc;

use super::{ChatTemplate, GuidanceDefaults, Message, Profile, ProfileError, SamplingDefaults};

/// How an arm turns messages into text.
#[derive(Clone, Debug)]
pub enum Rendering {
    /// `@base`: the messages' text alone, joined by blank lines.
    Base,
    /// `@turn`: a profile's turn markup without its prefix.
    Turn(Arc<Profile>),
    /// A profile: its prefix, then its turns.
    Profile(Arc<Profile>),
    /// The model's own chat template.
    Template(Arc<ChatTemplate>),
}

/// What a rendering without a profile asks for: nothing.
static NO_DEFAULTS: SamplingDefaults = SamplingDefaults::NONE;

impl Rendering {
    /// The constant text before the conversation, without a BOS; empty where
    /// there is none. It is encoded on its own.
    pub fn prefix(&self) -> &str {
        match self {
            Rendering::Profile(profile) => profile.prefix(),
            Rendering::Base | Rendering::Turn(_) | Rendering::Template(_) => "",
        }
    }

    /// The text of a conversation after the prefix, open at the answer.
    /// `protect` is applied to each message's content before it goes in, and
    /// must break up whatever would become a control token.
    ///
    /// # Errors
    /// [`ProfileError::Refused`] when a chat template turns the messages down,
    /// [`ProfileError::Broken`] when a template fails on them.
    pub fn render(
        &self,
        messages: &[Message],
        protect: &dyn Fn(&str) -> String,
    ) -> Result<String, ProfileError> {
        match self {
            Rendering::Base => {
                let texts: Vec<String> = messages
                    .iter()
                    .map(|message| protect(&message.content))
                    .collect();
                Ok(texts.join("\n\n"))
            }
            Rendering::Turn(profile) | Rendering::Profile(profile) => {
                profile.turns(messages, protect)
            }
            Rendering::Template(template) => template.render(messages, protect),
        }
    }

    /// What ends an answer when a line of it begins with one of these.
    pub fn markers(&self) -> &[String] {
        match self {
            Rendering::Turn(profile) | Rendering::Profile(profile) => profile.markers(),
            Rendering::Template(template) => template.markers(),
            Rendering::Base => &[],
        }
    }

    /// How answers are sampled where the client does not say.
    pub fn defaults(&self) -> &SamplingDefaults {
        match self {
            Rendering::Turn(profile) | Rendering::Profile(profile) => profile.defaults(),
            Rendering::Base | Rendering::Template(_) => &NO_DEFAULTS,
        }
    }

    /// How answers are guided where the client does not say: only a profile's that has
    /// its prefix, which is what guidance leads away from.
    pub fn guidance(&self) -> Option<GuidanceDefaults> {
        match self {
            Rendering::Profile(profile) => profile.guidance(),
            Rendering::Base | Rendering::Turn(_) | Rendering::Template(_) => None,
        }
    }

    /// The name of the profile, if there is one: `base` and `turn` included.
    pub fn profile_name(&self) -> Option<&str> {
        match self {
            Rendering::Base => Some("base"),
            Rendering::Turn(_) => Some("turn"),
            Rendering::Profile(profile) => Some(profile.name()),
            Rendering::Template(_) => None,
        }
    }

    /// Whether the text begins with whatever BOS it is meant to have, so that
    /// none is added: a chat template writes its own, or wants none.
    pub fn writes_bos(&self) -> bool {
        matches!(self, Rendering::Template(_))
    }
}

/// A character that is in none of the messages, for breaking up control tokens
/// in them: a noncharacter where possible, which no text has a use for.
pub fn guard_for(messages: &[Message]) -> char {
    let candidates = || ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{10ffff}');
    let used: HashSet<char> = messages
        .iter()
        .flat_map(|message| message.content.chars())
        .filter(|c| *c >= '\u{fdd0}')
        .collect();
    // Only a text that holds all 131,104 of these leaves none over; even then
    // the guard separates, it is merely taken out of that text as well.
    candidates()
        .find(|candidate| !used.contains(candidate))
        .unwrap_or('\u{fdd0}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Role;

    #[test]
    fn base_is_the_messages_text_and_nothing_else() {
        let messages = [
            Message::new(Role::System, "one"),
            Message::new(Role::User, "# Query: <eos>"),
        ];
        let text = Rendering::Base.render(&messages, &|text| text.replace("<eos>", "<!eos>"));
        assert_eq!(text.unwrap(), "one\n\n# Query: <!eos>");
        assert_eq!(Rendering::Base.prefix(), "");
        assert!(Rendering::Base.markers().is_empty());
    }

    #[test]
    fn the_guard_is_in_no_message() {
        assert_eq!(guard_for(&[]), '\u{fdd0}');
        let user = |content: String| Message::new(Role::User, content);
        let messages = [user("a\u{fdd0}b".into()), user("\u{fdd1}".into())];
        assert_eq!(guard_for(&messages), '\u{fdd2}');
        let all: String = ('\u{fdd0}'..='\u{fdef}').collect();
        assert_eq!(guard_for(&[user(all)]), '\u{f0000}');
    }
}
