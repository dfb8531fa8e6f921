//! Interpretation of a record: its conversation, and the turns to learn.

use std::collections::BTreeSet;

use super::record::{ParsedMessage, RawRecord, TextOrMessages, parse_messages, transcript};
use super::{Content, Conversation};
use incant_gguf::printable::printable;
use incant_prompt::profile::{Message, Role};

/// Parses a line, or returns what is wrong with it.
pub(super) fn content(line: &str, ignored_keys: &mut BTreeSet<String>) -> Result<Content, String> {
    if line.trim_start().starts_with('[') {
        return Err(
            "a record is an object, not a list; of a JSON array, write each record in a \
                    line of its own"
                .to_owned(),
        );
    }
    let line: RawRecord = serde_json::from_str(line).map_err(|error| {
        // serde's message always names line 1.
        let text = error.to_string();
        let what = text
            .rsplit_once(" at line ")
            .map_or(&*text, |(what, _)| what);
        format!("column {}: {}", error.column(), printable(what))
    })?;
    line.collect_ignored_keys(ignored_keys);
    let messages = line.messages.map(|turns| parse_messages("messages", turns));
    let messages = messages.transpose()?;
    let prompt = line.prompt.map(TextOrMessages::prompt).transpose()?;
    match (
        prompt,
        line.completion,
        line.chosen,
        line.rejected,
        line.text,
    ) {
        (prompt, None, None, None, None) if messages.is_some() || prompt.is_some() => {
            match (messages, prompt) {
                (Some(messages), prompt) => {
                    if prompt.is_some_and(|prompt| position_of(&prompt, &messages).is_none()) {
                        return Err("'messages' does not contain the 'prompt'".to_owned());
                    }
                    conversation_or_prompt(messages)
                }
                (None, prompt) => open_prompt(prompt.unwrap_or_default()),
            }
        }
        (Some(prompt), Some(completion), None, None, None) => {
            let (whole, from) = with_answer("completion", prompt, completion)?;
            check_agreement(messages.as_deref(), "completion", &whole)?;
            let conversation = conversation("completion", whole, from)?;
            Ok(Content::Conversation(conversation))
        }
        (prompt, None, Some(chosen), Some(rejected), None) => {
            pair(messages.as_deref(), prompt, chosen, rejected)
        }
        (None, None, None, None, Some(text)) if messages.is_none() => {
            if text.is_empty() {
                Err("'text' is empty".to_owned())
            } else {
                Ok(Content::Text(text))
            }
        }
        _ => Err(
            "its keys are not those of any kind: messages; prompt and completion; prompt, \
             chosen and rejected; chosen and rejected; prompt; text"
                .to_owned(),
        ),
    }
}

/// The index at which `turns` occur in a conversation, one after the other.
fn position_of(turns: &[ParsedMessage], conversation: &[ParsedMessage]) -> Option<usize> {
    let last = conversation.len().checked_sub(turns.len())?;
    (0..=last).find(|&at| {
        let mut pairs = turns.iter().zip(&conversation[at..]);
        pairs.all(|(one, other)| one.same_text(other))
    })
}

/// Rejects `messages` beside an answer, unless the conversation with that answer begins with
/// them.
fn check_agreement(
    messages: Option<&[ParsedMessage]>,
    name: &str,
    whole: &[ParsedMessage],
) -> Result<(), String> {
    match messages {
        Some(messages) if position_of(messages, whole) != Some(0) => {
            Err(format!("'messages' does not agree with '{name}'"))
        }
        _ => Ok(()),
    }
}

fn messages(parsed: Vec<ParsedMessage>) -> Vec<Message> {
    parsed.into_iter().map(|parsed| parsed.message).collect()
}

/// A conversation whose every assistant turn counts, or a prompt.
fn conversation_or_prompt(parsed: Vec<ParsedMessage>) -> Result<Content, String> {
    match parsed.last().map(|last| last.message.role) {
        None => Err("'messages' is empty".to_owned()),
        Some(Role::Assistant) => conversation("messages", parsed, 0).map(Content::Conversation),
        Some(_) => open_prompt(parsed),
    }
}

fn open_prompt(parsed: Vec<ParsedMessage>) -> Result<Content, String> {
    match parsed.last().map(|last| last.message.role) {
        Some(Role::User | Role::System) => Ok(Content::Prompt(messages(parsed))),
        Some(Role::Assistant) => Err("the prompt ends with the assistant's turn".to_owned()),
        None => Err("the prompt is empty".to_owned()),
    }
}

/// `prompt` with the answer called `name`, and the index at which the answer begins. An answer
/// with turns of others before its own is a conversation, which must contain the prompt or
/// continue it.
fn with_answer(
    name: &str,
    prompt: Vec<ParsedMessage>,
    answer: TextOrMessages,
) -> Result<(Vec<ParsedMessage>, usize), String> {
    let answer = answer.parse(name, Role::Assistant)?;
    let first = answer.first().map(|first| first.message.role);
    if first.is_none_or(|role| role == Role::Assistant) {
        let from = prompt.len();
        return Ok(([prompt, answer].concat(), from));
    }
    let no_answer = || format!("'{name}' has only turns of the prompt and no answer to it");
    if let Some(at) = position_of(&prompt, &answer) {
        let from = at + prompt.len();
        return if from < answer.len() {
            Ok((answer, from))
        } else {
            Err(no_answer())
        };
    }
    let most = prompt.len().min(answer.len());
    let shared = (1..=most).rev().find(|&shared| {
        let end = &prompt[prompt.len() - shared..];
        position_of(end, &answer[..shared]).is_some()
    });
    match shared {
        Some(shared) if shared < answer.len() => {
            let from = prompt.len();
            Ok(([&prompt, &answer[shared..]].concat(), from))
        }
        None if position_of(&answer, &prompt).is_none() => Err(format!(
            "'{name}' has turns before its answer that are not the prompt's"
        )),
        _ => Err(no_answer()),
    }
}

/// A conversation, called `name`, whose assistant turns count from the message `from` on.
fn conversation(
    name: &str,
    parsed: Vec<ParsedMessage>,
    from: usize,
) -> Result<Conversation, String> {
    match parsed.last().map(|last| last.message.role) {
        Some(Role::Assistant) if parsed.len() > from => {}
        _ => return Err(format!("'{name}' does not end with the assistant's turn")),
    }
    let answers = parsed.iter().enumerate().skip(from);
    let answers = answers.filter(|(_, parsed)| parsed.message.role == Role::Assistant);
    let (learnt, excluded): (Vec<_>, Vec<_>) = answers.partition(|(_, parsed)| parsed.is_learnt);
    if learnt.is_empty() {
        return Err(format!(
            "nothing of '{name}' would be learnt: all its answers have the weight 0"
        ));
    }
    let excluded = excluded.into_iter().map(|(at, _)| at).collect();
    Ok(Conversation {
        messages: messages(parsed),
        from,
        excluded,
    })
}

fn pair(
    together: Option<&[ParsedMessage]>,
    prompt: Option<Vec<ParsedMessage>>,
    chosen: TextOrMessages,
    rejected: TextOrMessages,
) -> Result<Content, String> {
    let [(chosen, after), (rejected, other)] = match prompt {
        Some(prompt) => [
            with_answer("chosen", prompt.clone(), chosen)?,
            with_answer("rejected", prompt, rejected)?,
        ],
        None => [
            (whole_conversation("chosen", chosen)?, 0),
            (whole_conversation("rejected", rejected)?, 0),
        ],
    };
    check_agreement(together, "chosen", &chosen)?;
    // The common prefix is the prompt, even if the record names another one: a pair teaches
    // only where its sides differ.
    let both = chosen.iter().zip(&rejected);
    let shared = both.take_while(|(a, b)| a.message == b.message).count();
    match [&chosen, &rejected].map(|side| side.len() == shared) {
        [true, true] => return Err("'chosen' and 'rejected' are the same".to_owned()),
        [false, false] => {}
        [is_chosen, _] => {
            let [longer, shorter] = if is_chosen {
                ["rejected", "chosen"]
            } else {
                ["chosen", "rejected"]
            };
            return Err(format!(
                "'{longer}' begins with all of '{shorter}': a pair is compared by the turns in \
                 which its sides differ, and '{shorter}' has none"
            ));
        }
    }
    Ok(Content::Pair {
        chosen: conversation("chosen", chosen, after.max(shared))?,
        rejected: conversation("rejected", rejected, other.max(shared))?,
    })
}

/// A whole conversation, under the key `name`: a list of messages, or a transcript.
fn whole_conversation(name: &str, value: TextOrMessages) -> Result<Vec<ParsedMessage>, String> {
    match value {
        TextOrMessages::Messages(turns) => parse_messages(name, turns),
        TextOrMessages::Text(text) => transcript(&text).ok_or_else(|| {
            "without a 'prompt', 'chosen' and 'rejected' must be lists of messages or begin with \
             a turn, \"\\n\\nHuman: \""
                .to_owned()
        }),
    }
}
