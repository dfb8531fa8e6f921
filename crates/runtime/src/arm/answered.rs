//! Tokenizes conversations that already have an answer: the prompt, and the tokens that a model
//! would have to generate for the answer.

use super::{Arm, Prompt, PromptError};
use incant_prompt::profile::{Message, Rendering, Role, guard_for};

/// A conversation that ends with an answer.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The prompt, as [`Arm::chat`] renders it.
    pub prompt: Prompt,
    /// The answer with its end: an end token, or the role marker of the next turn.
    pub answer: Vec<u32>,
}

impl Arm {
    /// Returns the tokens of a conversation whose last message is an answer.
    ///
    /// The answer has the tokens that it would have in the prompt of the next turn, including its
    /// end: the end token that the arm writes after an answer, else the first of its role markers;
    /// if the arm writes neither, the model's EOS is added.
    ///
    /// # Errors
    /// A chat template refuses the messages.
    pub fn answered(&self, messages: &[Message]) -> Result<Answered, PromptError> {
        let tokenizer = self.tokenizer();
        let guard = guard_for(messages);
        let protect = |text: &str| tokenizer.guard_controls(text, guard).into_owned();
        let before = &messages[..messages.len().saturating_sub(1)];
        let prompt = self.chat(before)?;
        let ends = tokenizer.end_tokens();
        let pieces: Vec<&str> = ends
            .iter()
            .filter_map(|&id| tokenizer.piece(id))
            .filter(|piece| !piece.is_empty())
            .collect();
        let turn = Turn::of(&self.rendering, messages, &pieces, &protect)?;

        let encode = |text: &str| tokenizer.encode_guarded(text, guard);
        let open = format!("{}{}", self.chat_tail, turn.open);
        let whole = encode(&format!("{open}{}{}", turn.answer_with_end, turn.after));
        // If the answer changes the tokens before it, it is encoded on its own: the tokens before
        // it must be those of serving.
        let opened = encode(&open);
        let mut answer = match whole.strip_prefix(&*opened) {
            Some(rest) => rest.to_vec(),
            None => encode(&format!("{}{}", turn.answer_with_end, turn.after)),
        };
        match turn.end {
            End::Token => {
                let end = answer.iter().position(|id| ends.contains(id));
                answer.truncate(end.map_or(answer.len(), |at| at + 1));
            }
            End::Marker | End::Nothing => {
                let mut missing = turn
                    .answer_with_end
                    .chars()
                    .filter(|&c| c != guard)
                    .map(char::len_utf8)
                    .sum();
                let covers = answer.iter().position(|&id| {
                    let bytes = tokenizer.token_text_special(id).len();
                    missing = usize::saturating_sub(missing, bytes);
                    missing == 0
                });
                answer.truncate(covers.map_or(answer.len(), |at| at + 1));
            }
        }
        if let End::Nothing = turn.end {
            answer.extend(tokenizer.eos());
        }
        Ok(Answered { prompt, answer })
    }
}

/// How an answer ends in a rendering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// At an end token.
    Token,
    /// At a role marker.
    Marker,
    /// Neither.
    Nothing,
}

/// The text of an answer within a longer conversation.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    /// The text before the answer in its prompt.
    open: String,
    /// The answer, with its end.
    answer_with_end: String,
    /// The text after it.
    after: String,
    end: End,
}

impl Turn {
    /// Finds the last of `messages`, an answer, in the rendering with another question after it.
    /// `ends` are the texts of end tokens.
    fn of(
        rendering: &Rendering,
        messages: &[Message],
        ends: &[&str],
        protect: &dyn Fn(&str) -> String,
    ) -> Result<Turn, PromptError> {
        let (answer, before) = match messages.split_last() {
            Some((answer, before)) => (answer.content.as_str(), before),
            None => ("", messages),
        };
        let open = rendering.render(before, protect)?;
        let mut longer = messages.to_vec();
        longer.push(Message::new(Role::User, "Hello"));
        let text = rendering.render(&longer, protect)?;
        let answer = rendering.shield(Role::Assistant, answer, protect);
        let answer = answer.trim();

        let nothing = || Turn {
            open: open.clone(),
            answer_with_end: answer.to_owned(),
            after: String::new(),
            end: End::Nothing,
        };
        let rest = match text.strip_prefix(&open) {
            Some(rest) => rest,
            // Some templates write the opening of an answer differently once the answer exists.
            None => {
                let rest = &text[shared_lines(&open, &text)..];
                let Some(begins) = rest.find(answer) else {
                    return Ok(nothing());
                };
                &rest[begins..]
            }
        };
        let Some(begins) = rest.find(answer) else {
            return Ok(nothing());
        };
        let ended = begins + answer.len();
        let (length, end) = ending(&rest[ended..], ends, rendering.markers());
        let (answer_with_end, after) = rest.split_at(ended + length);
        Ok(Turn {
            open,
            answer_with_end: answer_with_end.to_owned(),
            // The text after an end is not part of the answer, but can change its tokens.
            after: match end {
                End::Nothing => String::new(),
                End::Token | End::Marker => after.to_owned(),
            },
            end,
        })
    }
}

/// Returns the length of the common start of two texts, up to the beginning of a line.
fn shared_lines(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let same = a.floor_char_boundary(same);
    a[..same].rfind('\n').map_or(0, |at| at + 1)
}

/// Returns how much of the text after an answer still belongs to it, and why it ends there.
fn ending(text: &str, ends: &[&str], markers: &[String]) -> (usize, End) {
    let tokens = ends
        .iter()
        .filter_map(|end| Some((text.find(end)?, end.len(), End::Token)));
    let at_line = |marker: &String| {
        let mut found = text.match_indices(marker.as_str());
        let found = found.find(|&(at, _)| at == 0 || text[..at].ends_with('\n'));
        found.map(|(at, _)| (at, marker.len(), End::Marker))
    };
    let first = tokens
        .chain(markers.iter().filter_map(at_line))
        .min_by_key(|&(at, ..)| at);
    first.map_or((0, End::Nothing), |(at, length, end)| (at + length, end))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use incant_prompt::profile::{ChatTemplate, Profile};

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
        <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn template(source: &str) -> Rendering {
        Rendering::Template(Arc::new(ChatTemplate::new(source, None, None).unwrap()))
    }

    fn profile() -> Rendering {
        let text = r##"+++
name = "short"
title = "Short"
description = "For tests"
language = "en"
shots = 0
version = 1
markers = ["# Query:", "# Answer:"]
+++
{% block prefix %}
{% endblock %}
{% block turns %}
{% for message in messages %}
# {{ "Query" if message.role == "user" else "Answer" }}:
{{ message.content | trim }}

{% endfor %}
# Answer:
{% endblock %}
"##;
        Rendering::Turn(Arc::new(Profile::parse("short.jinja", text).unwrap()))
    }

    fn turn(rendering: &Rendering, answer: &str) -> Turn {
        let messages = [
            Message::new(Role::User, "Hi"),
            Message::new(Role::Assistant, answer),
        ];
        let guarded = |text: &str| text.replace("<|im_end|>", "<!|im_end|>");
        Turn::of(rendering, &messages, &["</s>", "<|im_end|>"], &guarded).unwrap()
    }

    #[test]
    fn a_template_ends_an_answer_with_its_end_token() {
        let found = turn(&template(CHATML), "Hello!");
        assert!(found.open.ends_with("<|im_start|>assistant\n"));
        assert_eq!(
            (found.answer_with_end.as_str(), found.end),
            ("Hello!<|im_end|>", End::Token)
        );
        assert!(
            found
                .after
                .starts_with("\n<|im_start|>user\nHello<|im_end|>")
        );
    }

    #[test]
    fn a_profile_ends_an_answer_with_the_marker_of_the_next_turn() {
        let found = turn(&profile(), "  Hello!\n");
        assert!(found.open.ends_with("# Answer:\n"));
        assert_eq!(
            (found.answer_with_end.as_str(), found.end),
            ("Hello!\n\n# Query:", End::Marker)
        );
        assert!(found.after.starts_with("\nHello"));
    }

    #[test]
    fn what_an_answer_says_does_not_end_it() {
        let found = turn(&template(CHATML), "It ends with <|im_end|>.");
        assert_eq!(found.answer_with_end, "It ends with <!|im_end|>.<|im_end|>");
        let found = turn(&profile(), "Write:\n# Query:\nand so on");
        assert_eq!(
            found.answer_with_end,
            "Write:\n\\# Query:\nand so on\n\n# Query:"
        );
    }

    #[test]
    fn plain_text_has_no_end_of_its_own() {
        let found = turn(&Rendering::Base, "Hello!");
        assert_eq!(
            (found.open.as_str(), found.answer_with_end.as_str()),
            ("Hi", "\n\nHello!")
        );
        assert_eq!(found.end, End::Nothing);
    }

    #[test]
    fn an_answer_that_is_opened_otherwise_later_is_found() {
        let thinking = CHATML.replace(
            "assistant\n{% endif",
            "assistant\n<think>\n</think>\n{% endif",
        );
        // Other parts of the conversation have the same text.
        for answer in ["Hello!", "Hello", "Hi"] {
            let found = turn(&template(&thinking), answer);
            assert!(found.open.ends_with("</think>\n"));
            assert_eq!(found.answer_with_end, format!("{answer}<|im_end|>"));
            assert!(found.after.starts_with("\n<|im_start|>user\nHello"));
        }
    }

    #[test]
    fn an_empty_answer_is_its_end() {
        assert_eq!(turn(&template(CHATML), "").answer_with_end, "<|im_end|>");
        assert_eq!(turn(&profile(), "").answer_with_end, "\n\n# Query:");
    }
}
