//! The role markers of a chat template, learnt by rendering sample conversations.
//!
//! The texts that open a turn are in the template, and a message that contains the same text
//! would open one as well. If it is a special token, the tokenizer keeps messages from becoming
//! it. If it is ordinary text (`### Instruction:`, `[INST]`, `USER:`), it is a marker, and is
//! escaped like those of profiles: a marker at the start of a line gets a backslash before it
//! there, any other marker has one inserted into it.
//!
//! Text after a special token on its line opens nothing by itself, so it is not a marker: the
//! `user` of ChatML. Tokens that separate texts (BOS and ends of turns) are an exception: in
//! `</s>USER:` it is the `USER:` that marks the role.

use std::sync::LazyLock;

use regex::Regex;

use super::{ChatTemplate, Message, Role, markers};

/// A piece of a text as a tokenizer splits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The text of the piece.
    pub text: &'a str,
    /// Its kind.
    pub kind: PartKind,
}

/// The kind of a piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// Text.
    Text,
    /// A special token that begins or ends a text or a turn.
    Separator,
    /// Another special token that is never text.
    Control,
    /// A special token that the vocabulary has as text.
    Markup,
}

/// Splits a text at its special tokens, like a tokenizer.
pub type SplitFn<'a> = &'a dyn Fn(&str) -> Vec<Part<'_>>;

/// The texts that a template writes around messages, except for special tokens.
#[derive(Debug, Default)]
pub(super) struct Markup {
    /// Markers at the start of a line only.
    lines: Vec<String>,
    /// Markers elsewhere.
    inline: Vec<String>,
    /// Markers at the start of a line that open another turn than the assistant's.
    turns: Vec<String>,
    /// Special tokens that the template parses in answers but does not write itself.
    parsed_in_answers: Vec<String>,
}

/// Surrounds each message of a sample conversation: a private-use character that no template
/// looks for and that is not a space.
const EDGE: char = '\u{f8f0}';

/// Maximum number of pieces that are tested for whether a template parses them in answers. Some
/// templates parse a pair for thoughts and one for tool calls.
const MAX_PARSED: usize = 16;

/// Words in brackets: `[INST]`, `<</SYS>>`, `<|user|>`.
static TAG: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"<\|[^<>|]+\|>|<{1,2}[^<>\s]+>{1,2}|\[{1,2}[^\[\]\s]+\]{1,2}";
    Regex::new(pattern).expect("a valid pattern")
});

impl Markup {
    /// Markup with known markers, each of which opens a turn at the start of a line.
    pub(super) fn of_lines(markers: Vec<String>) -> Markup {
        Markup {
            lines: markers.clone(),
            turns: markers,
            ..Markup::default()
        }
    }

    /// Learns the texts that `template` writes around messages of every role.
    pub(super) fn learn(template: &ChatTemplate, split: SplitFn<'_>) -> Markup {
        use Role::{Assistant, System, User};
        let mut markup = Markup::default();
        let mut written = Vec::new();
        for roles in [
            &[System, User, Assistant, User][..],
            &[User, Assistant, User],
            &[System, User],
            &[User],
        ] {
            let messages = roles.iter().enumerate();
            let messages = messages
                .map(|(at, &role)| Message::new(role, format!("{EDGE}{at}{EDGE}")))
                .collect::<Vec<_>>();
            // Some templates reject a system message, or accept only one question.
            let Ok(text) = template.render(&messages, &str::to_owned) else {
                continue;
            };
            // Between two edges is the number of a message.
            let parts: Vec<&str> = text.split(EDGE).collect();
            for (at, around) in parts.iter().enumerate().step_by(2) {
                let next = parts.get(at + 1).and_then(|number| number.parse().ok());
                let next = next.and_then(|number: usize| roles.get(number));
                let opens_turn = at > 0 && next.is_some_and(|&role| role != Assistant);
                let around = split(around);
                written.extend(specials(&around));
                markup.add_markers_around(&around, at == 0, opens_turn);
            }
        }
        let searched = split(template.source());
        let searched = searched.iter();
        let mut pieces = Vec::new();
        for part in searched.filter(|part| part.kind == PartKind::Markup) {
            if pieces.len() < MAX_PARSED && !written.iter().any(|text| text == part.text) {
                add(&mut pieces, part.text);
            }
        }
        markup.parsed_in_answers = parsed_in_answers(template, pieces);
        let Markup { lines, inline, .. } = &mut markup;
        lines.retain(|line| !inline.contains(line));
        markup
    }

    /// Markers at the start of a line that open another turn than the assistant's.
    pub(super) fn turns(&self) -> &[String] {
        &self.turns
    }

    /// A message's text with escaped markers, `protect` applied to it. Tokens that the template
    /// parses in answers stay in answers.
    pub(super) fn shield(
        &self,
        role: Role,
        text: &str,
        protect: &dyn Fn(&str) -> String,
    ) -> String {
        let safe = |text: &str| {
            let text = markers::escape(text, &self.lines);
            protect(&markers::break_up(&text, &self.inline))
        };
        if role != Role::Assistant {
            return safe(text);
        }
        // Each piece's next place, searched again only after it has been passed.
        let mut next: Vec<Option<usize>> = self
            .parsed_in_answers
            .iter()
            .map(|piece| text.find(piece))
            .collect();
        let mut shielded = String::with_capacity(text.len());
        let mut at = 0;
        loop {
            for (place, piece) in next.iter_mut().zip(&self.parsed_in_answers) {
                if place.is_some_and(|place| place < at) {
                    *place = text[at..].find(piece).map(|found| at + found);
                }
            }
            let places = next.iter().zip(&self.parsed_in_answers);
            let found =
                places.filter_map(|(place, piece)| Some((*place)?..(*place)? + piece.len()));
            let Some(found) = found.min_by_key(|found| (found.start, found.end)) else {
                break;
            };
            shielded += &safe(&text[at..found.start]);
            shielded += &text[found.clone()];
            at = found.end;
        }
        shielded + &safe(&text[at..])
    }

    /// Adds the markers in the text before, between or after messages. In the text before all
    /// of them, only the last line can open a turn: the rest is a preamble.
    fn add_markers_around(&mut self, parts: &[Part<'_>], is_start: bool, opens_turn: bool) {
        let mut lines = lines(parts, is_start);
        lines.retain(|line| !line.texts.is_empty());
        let skipped = if is_start {
            lines.len().saturating_sub(1)
        } else {
            0
        };
        let mut found = false;
        for line in &lines[skipped..] {
            for text in &line.texts {
                found |= self.add_markers_of(*text, opens_turn);
            }
        }
        let is_all_text = parts.iter().all(|part| part.kind == PartKind::Text);
        // If no words mark the role, signs do.
        if !found
            && is_all_text
            && let Some(text) = lines.last().and_then(|line| line.texts.last())
            && text.text.chars().nth(1).is_some()
        {
            self.add(text.text, text.begins_line, opens_turn);
        }
    }

    /// Adds the markers of a text on one line. Returns whether there are any.
    fn add_markers_of(&mut self, text: LineText<'_>, opens_turn: bool) -> bool {
        let mut found = false;
        let mut preceding = text.preceding;
        let mut at = 0;
        let tags = TAG.find_iter(text.text);
        let tags: Vec<_> = tags
            .filter(|tag| tag.as_str().contains(char::is_alphabetic))
            .collect();
        for tag in &tags {
            add(&mut self.inline, tag.as_str());
            if opens_turn && text.begins_line && tag.start() == 0 {
                add(&mut self.turns, tag.as_str());
            }
            found = true;
        }
        for end in tags.iter().map(|tag| tag.start()).chain([text.text.len()]) {
            let words = text.text[at..end].trim();
            let is_bare = !words.contains(|c: char| !(c.is_alphanumeric() || " _-".contains(c)));
            let opens = match preceding {
                Preceding::Nothing => true,
                Preceding::Separator => !is_bare,
                Preceding::Special => false,
            };
            if opens && words.contains(char::is_alphanumeric) {
                self.add(words, text.begins_line && at == 0, opens_turn);
                found = true;
            }
            preceding = Preceding::Separator;
            let tag = tags.iter().find(|tag| tag.start() == end);
            at = tag.map_or(end, regex::Match::end);
        }
        found
    }

    fn add(&mut self, marker: &str, begins_line: bool, opens_turn: bool) {
        if begins_line {
            add(&mut self.lines, marker)
        } else {
            add(&mut self.inline, marker)
        }
        if begins_line && opens_turn {
            add(&mut self.turns, marker);
        }
    }
}

/// Those of `pieces` that change how a template renders an answer that contains them.
fn parsed_in_answers(template: &ChatTemplate, mut pieces: Vec<String>) -> Vec<String> {
    use Role::{Assistant, User};
    // Opening pieces come before closing ones, as they would in an answer.
    pieces.sort_by_key(|piece| piece.starts_with("</"));
    let written = |without: Option<usize>| {
        let parts = pieces.iter().enumerate().map(|(at, piece)| {
            let own = EDGE.to_string();
            let piece = if without == Some(at) { &own } else { piece };
            format!("{at}{piece}")
        });
        let answer = parts.collect::<String>() + "end";
        [&[User, Assistant, User][..], &[User, Assistant]].map(|roles| {
            let messages = roles.iter().map(|&role| match role {
                Assistant => Message::new(role, answer.as_str()),
                _ => Message::new(role, "Hello"),
            });
            let messages: Vec<_> = messages.collect();
            template.render(&messages, &str::to_owned).ok()
        })
    };
    let with_all = written(None);
    let is_parsed = |at: usize, piece: &str| {
        let without = written(Some(at));
        let without = without.map(|text| text.map(|text| text.replace(EDGE, piece)));
        without != with_all
    };
    let parsed = pieces.iter().enumerate();
    let parsed = parsed.filter(|(at, piece)| is_parsed(*at, piece));
    parsed.map(|(_, piece)| piece.clone()).collect()
}

fn add(markers: &mut Vec<String>, marker: &str) {
    if !markers.iter().any(|known| known == marker) {
        markers.push(marker.to_owned());
    }
}

/// The texts of special tokens.
fn specials<'a>(parts: &'a [Part<'_>]) -> impl Iterator<Item = String> + 'a {
    let specials = parts.iter().filter(|part| part.kind != PartKind::Text);
    specials.map(|part| part.text.to_owned())
}

/// The kind of token that precedes a text on its line.
#[derive(Clone, Copy)]
enum Preceding {
    Nothing,
    Separator,
    Special,
}

/// Text on a line, never blank.
#[derive(Clone, Copy)]
struct LineText<'a> {
    text: &'a str,
    begins_line: bool,
    preceding: Preceding,
}

/// One line of the text around messages.
#[derive(Default)]
struct Line<'a> {
    texts: Vec<LineText<'a>>,
}

/// The lines of the text around messages. The first one follows a message, unless the text
/// `begins` the conversation.
fn lines<'a>(parts: &[Part<'a>], begins: bool) -> Vec<Line<'a>> {
    let mut lines = vec![Line::default()];
    let (mut begins_line, mut preceding) = (begins, Preceding::Nothing);
    for part in parts {
        match part.kind {
            PartKind::Text => {}
            PartKind::Separator => {
                // A separator that begins the conversation begins a line as well.
                begins_line = begins_line && lines.len() == 1;
                preceding = Preceding::Separator;
                continue;
            }
            PartKind::Control | PartKind::Markup => {
                begins_line = false;
                preceding = Preceding::Special;
                continue;
            }
        }
        for (at, piece) in part.text.split('\n').enumerate() {
            if at > 0 {
                lines.push(Line::default());
                (begins_line, preceding) = (true, Preceding::Nothing);
            }
            let text = piece.trim();
            if let (false, Some(line)) = (text.is_empty(), lines.last_mut()) {
                line.texts.push(LineText {
                    text,
                    begins_line,
                    preceding,
                });
                begins_line = false;
            }
        }
    }
    lines
}
