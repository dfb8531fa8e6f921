//! The prompts of a comparison: one question, or a file.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail};
use incant::open;
use incant::profile::{Message, Role};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum InputPrompt {
    /// A conversation, which each arm renders.
    Chat(Vec<Message>),
    /// A text that each arm continues verbatim.
    Verbatim(String),
}

/// How texts become prompts.
#[derive(Clone, Debug)]
pub(super) struct PromptReader {
    /// Take each text verbatim.
    pub(super) verbatim: bool,
    /// The system message, for conversations without one.
    pub(super) system: Option<String>,
}

/// A line of a JSON Lines file. Other fields are ignored. (Collecting them prevents serde from
/// reading a list as the struct, field by field.)
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Line {
    prompt: Option<String>,
    messages: Option<Vec<Turn>>,
    #[serde(flatten)]
    _rest: HashMap<String, IgnoredAny>,
}

/// A message of a conversation. Other fields are ignored, too.
#[derive(Deserialize)]
#[serde(expecting = "a message with a role and a content")]
struct Turn {
    role: Role,
    content: String,
    #[serde(flatten)]
    _rest: HashMap<String, IgnoredAny>,
}

impl PromptReader {
    /// Turns a text into a prompt.
    pub(super) fn text(&self, text: &str) -> InputPrompt {
        if self.verbatim {
            InputPrompt::Verbatim(text.to_owned())
        } else {
            self.chat(vec![Message::new(Role::User, text)])
        }
    }

    fn chat(&self, mut messages: Vec<Message>) -> InputPrompt {
        let has_system = messages.iter().any(|message| message.role == Role::System);
        if let Some(system) = self.system.as_ref().filter(|_| !has_system) {
            messages.insert(0, Message::new(Role::System, system));
        }
        InputPrompt::Chat(messages)
    }

    /// Reads a file: JSON Lines if its name ends in `.jsonl`, else a text file with a prompt on
    /// each line that is not blank. A byte order mark is skipped.
    pub(super) fn file(&self, path: &Path) -> anyhow::Result<Vec<InputPrompt>> {
        let name = path.display();
        let text = open::read_text(path, open::Kind::PROMPTS).with_context(|| name.to_string())?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let is_json = path
            .extension()
            .is_some_and(|extension| extension == "jsonl");
        let mut prompts = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            prompts.push(if is_json {
                let prompt = self.json(line);
                prompt.with_context(|| format!("{name}, line {number}"))?
            } else {
                self.text(line)
            });
        }
        if prompts.is_empty() {
            bail!("{name}: there are no prompts in it");
        }
        Ok(prompts)
    }

    fn json(&self, line: &str) -> anyhow::Result<InputPrompt> {
        let line: Line = serde_json::from_str(line).map_err(|error| {
            // The error's position is left out: its line is always the first.
            let text = error.to_string();
            let what = text
                .rsplit_once(" at line ")
                .map_or(&*text, |(what, _)| what);
            anyhow::anyhow!("column {}: {what}", error.column())
        })?;
        match (line.prompt, line.messages) {
            (Some(text), None) => Ok(self.text(&text)),
            (None, Some(messages)) if messages.is_empty() => bail!("'messages' is empty"),
            (None, Some(_)) if self.verbatim => {
                bail!("'messages' cannot be taken verbatim; give 'prompt'")
            }
            (None, Some(messages)) => {
                let messages = messages.into_iter();
                let messages = messages.map(|turn| Message::new(turn.role, turn.content));
                Ok(self.chat(messages.collect()))
            }
            (Some(_), Some(_)) => bail!("give 'prompt' or 'messages', not both"),
            (None, None) => bail!("there is neither 'prompt' nor 'messages'"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const CHAT: PromptReader = PromptReader {
        verbatim: false,
        system: None,
    };

    fn user(text: &str) -> Message {
        Message::new(Role::User, text)
    }

    /// Reads a file called `name` that contains `text`.
    fn read(reader: &PromptReader, name: &str, text: &str) -> anyhow::Result<Vec<InputPrompt>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        reader.file(&path)
    }

    #[track_caller]
    fn error_text(reader: &PromptReader, name: &str, text: &str) -> String {
        let error = format!("{:#}", read(reader, name, text).unwrap_err());
        let (_, rest) = error.split_once(name).expect("the file is named");
        assert!(!rest.contains('\n'), "{rest}");
        rest.to_owned()
    }

    #[test]
    fn each_line_of_a_text_is_a_prompt() {
        let prompts = read(&CHAT, "a.txt", "One?\r\n\n  \n{\"prompt\": 2}\n").unwrap();
        let expected = ["One?", "{\"prompt\": 2}"].map(|text| InputPrompt::Chat(vec![user(text)]));
        assert_eq!(prompts, expected);
    }

    #[test]
    fn json_lines_hold_prompts_and_conversations() {
        let lines = "{\"prompt\": \"One?\", \"id\": 7}\n\n\
            {\"messages\": [{\"role\": \"developer\", \"content\": \"Be brief.\"}, \
            {\"role\": \"user\", \"content\": \"Two?\"}]}\n";
        let system = Message::new(Role::System, "Be brief.");
        let prompts = read(&CHAT, "a.jsonl", lines).unwrap();
        let conversation = vec![system, user("Two?")];
        assert_eq!(
            prompts,
            [
                InputPrompt::Chat(vec![user("One?")]),
                InputPrompt::Chat(conversation.clone())
            ]
        );
        // A conversation keeps its own system message.
        let polite = PromptReader {
            system: Some("Be polite.".to_owned()),
            ..CHAT
        };
        let prompts = read(&polite, "a.jsonl", lines).unwrap();
        let system = Message::new(Role::System, "Be polite.");
        assert_eq!(prompts[0], InputPrompt::Chat(vec![system, user("One?")]));
        assert_eq!(prompts[1], InputPrompt::Chat(conversation));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let verbatim = PromptReader {
            verbatim: true,
            system: None,
        };
        let message = r#"{"messages": [{"role": "user", "content": "x"}]}"#;
        let error_text = |reader, line: &str| error_text(reader, "a.jsonl", &format!("\n{line}\n"));
        assert_eq!(
            error_text(&CHAT, "{\"prompt\": \"x\""),
            ", line 2: column 14: EOF while parsing an object"
        );
        let neither = ", line 2: there is neither 'prompt' nor 'messages'";
        assert_eq!(error_text(&CHAT, "{\"text\": \"x\"}"), neither);
        let both = ", line 2: give 'prompt' or 'messages', not both";
        assert_eq!(
            error_text(&CHAT, "{\"prompt\": \"x\", \"messages\": []}"),
            both
        );
        let empty = ", line 2: 'messages' is empty";
        assert_eq!(error_text(&CHAT, "{\"messages\": []}"), empty);
        let tool = error_text(&CHAT, r#"{"messages": [{"role": "tool", "content": "x"}]}"#);
        assert!(tool.contains("unknown variant `tool`"), "{tool}");
        let verbatim = error_text(&verbatim, message);
        assert!(verbatim.contains("cannot be taken verbatim"), "{verbatim}");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_prompt() {
        let prompts = read(&CHAT, "a.txt", "\u{feff}One?\r\nTwo?\r\n").unwrap();
        let expected = ["One?", "Two?"].map(|text| InputPrompt::Chat(vec![user(text)]));
        assert_eq!(prompts, expected);
        let prompts = read(&CHAT, "a.jsonl", "\u{feff}{\"prompt\": \"One?\"}\n").unwrap();
        assert_eq!(prompts, expected[..1]);
    }

    #[test]
    fn a_list_does_not_stand_for_an_object() {
        let list = error_text(&CHAT, "a.jsonl", "[\"One?\", null]\n");
        assert!(list.contains("expected an object"), "{list}");
        let list = error_text(&CHAT, "a.jsonl", "{\"messages\": [[\"user\", \"One?\"]]}\n");
        assert!(list.contains("expected a message"), "{list}");
    }

    #[test]
    fn a_file_without_prompts_is_refused() {
        assert_eq!(
            error_text(&CHAT, "a.txt", "\n \n"),
            ": there are no prompts in it"
        );
    }
}
