//! Renderings: the interface to profiles and chat templates that requests use. Messages in, a
//! text out.

use std::collections::HashSet;
use std::sync::Arc;

use super::{
    ChatTemplate, GuidanceDefaults, Message, Profile, ProfileError, Role, SamplingDefaults, markers,
};

/// The rendering of an arm, which turns messages into text.
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

/// The sampling defaults of renderings without a profile.
static NO_DEFAULTS: SamplingDefaults = SamplingDefaults::NONE;

impl Rendering {
    /// The constant text before the conversation, without a BOS; empty if there is none. It is
    /// tokenized separately.
    pub fn prefix(&self) -> &str {
        match self {
            Rendering::Profile(profile) => profile.prefix(),
            Rendering::Base | Rendering::Turn(_) | Rendering::Template(_) => "",
        }
    }

    /// The text of a conversation after the prefix, open at the answer. `protect` is applied to
    /// each message's content first, and must break up every text that would become a control
    /// token.
    ///
    /// # Errors
    /// [`ProfileError::Refused`] if a chat template rejects the messages,
    /// [`ProfileError::Broken`] if a template fails on them.
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

    /// A message's text as [`render`](Self::render) passes it on.
    pub fn shield(&self, role: Role, text: &str, protect: &dyn Fn(&str) -> String) -> String {
        match self {
            Rendering::Base => protect(text),
            Rendering::Turn(profile) | Rendering::Profile(profile) => {
                protect(&markers::escape(text, profile.markers()))
            }
            Rendering::Template(template) => template.shield(role, text, protect),
        }
    }

    /// Stop markers: an answer ends where one of its lines begins with one of these.
    pub fn markers(&self) -> &[String] {
        match self {
            Rendering::Turn(profile) | Rendering::Profile(profile) => profile.markers(),
            Rendering::Template(template) => template.markers(),
            Rendering::Base => &[],
        }
    }

    /// Sampling defaults, for parameters that the client does not set.
    pub fn defaults(&self) -> &SamplingDefaults {
        match self {
            Rendering::Turn(profile) | Rendering::Profile(profile) => profile.defaults(),
            Rendering::Base | Rendering::Template(_) => &NO_DEFAULTS,
        }
    }

    /// Defaults for classifier-free guidance, for requests that do not set it. Only a profile
    /// with its prefix has them: the prefix alone is what guidance leads away from.
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

    /// Whether the text already has its BOS, so that none is added: a chat template writes its
    /// own, or wants none.
    pub fn writes_bos(&self) -> bool {
        matches!(self, Rendering::Template(_))
    }
}

/// A character that occurs in none of the messages, to break up control tokens in them: a
/// noncharacter if possible, which no text has a use for.
pub fn guard_for(messages: &[Message]) -> char {
    let candidates = || ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{10ffff}');
    let used: HashSet<char> = messages
        .iter()
        .flat_map(|message| message.content.chars())
        .filter(|c| *c >= '\u{fdd0}')
        .collect();
    // Only a text that holds all 131,104 of these leaves none over; even then the guard
    // separates, it is merely removed from that text as well.
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
