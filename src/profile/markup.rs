//! What a chat template writes around messages, learnt by having it write some.
//!
//! What opens a turn is in the template's text, and a message that holds the same would
//! open one as well. Where it is a special token, the tokenizer keeps messages from
//! becoming it. Where it is text like any other (`### Instruction:`, `[INST]`, `USER:`), it
//! is a marker, and is escaped as those of profiles are: what stands at the start of a line
//! gets a backslash before it there, what stands anywhere else has one put into it.
//!
//! Text behind a special token on its line opens nothing by itself, so it is no marker: the
//! `user` of ChatML. An exception is what separates texts, BOS and the ends of turns: in
//! `</s>USER:` it is the `USER:` that says who speaks.

use std::sync::LazyLock;

use regex::Regex;

use super::{ChatTemplate, Message, Role, markers};

/// A part of a text as a tokenizer cuts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// What stands there.
    pub text: &'a str,
    /// What it is.
    pub kind: PartKind,
}

/// What a part of a text is.
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

/// How a tokenizer cuts a text at its special tokens.
pub type Cut<'a> = &'a dyn Fn(&str) -> Vec<Part<'_>>;

/// What a template writes around messages, where it is not special tokens.
#[derive(Debug, Default)]
pub(super) struct Markup {
    /// Markers that stand at the start of a line only.
    lines: Vec<String>,
    /// Markers that stand elsewhere.
    inline: Vec<String>,
    /// Those that open another turn than the assistant's at the start of a line.
    turns: Vec<String>,
    /// Special tokens that the template looks for in answers, and writes around none.
    read: Vec<String>,
}

/// Stands before and after each message that a template is tried on: a private character
/// that no template looks for and that is no space.
const EDGE: char = '\u{f8f0}';

/// How many pieces are tried for whether a template looks for them in answers. Some look for
/// a pair for thoughts and one for calls.
const MOST_READ: usize = 16;

/// Words in brackets: `[INST]`, `<</SYS>>`, `<|user|>`.
static TAG: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"<\|[^<>|]+\|>|<{1,2}[^<>\s]+>{1,2}|\[{1,2}[^\[\]\s]+\]{1,2}";
    Regex::new(pattern).expect("a valid pattern")
});

impl Markup {
    /// Markers that are known: each opens a turn at the start of a line.
    pub(super) fn of_lines(markers: Vec<String>) -> Markup {
        Markup {
            lines: markers.clone(),
            turns: markers,
            ..Markup::default()
        }
    }

    /// What `template` writes around messages of every role.
    pub(super) fn learn(template: &ChatTemplate, cut: Cut<'_>) -> Markup {
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
            // Some take no system message, or only one question.
            let Ok(text) = template.render(&messages, &str::to_owned) else {
                continue;
            };
            // What stands between two edges is the number of a message.
            let parts: Vec<&str> = text.split(EDGE).collect();
            for (at, around) in parts.iter().enumerate().step_by(2) {
                let next = parts.get(at + 1).and_then(|number| number.parse().ok());
                let next = next.and_then(|number: usize| roles.get(number));
                let opens_turn = at > 0 && next.is_some_and(|&role| role != Assistant);
                let cut = cut(around);
                written.extend(specials(&cut));
                markup.read_around(&cut, at == 0, opens_turn);
            }
        }
        let searched = cut(template.source());
        let searched = searched.iter();
        let mut pieces = Vec::new();
        for part in searched.filter(|part| part.kind == PartKind::Markup) {
            if pieces.len() < MOST_READ && !written.iter().any(|text| text == part.text) {
                add(&mut pieces, part.text);
            }
        }
        markup.read = read_in_answers(template, pieces);
        let Markup { lines, inline, .. } = &mut markup;
        lines.retain(|line| !inline.contains(line));
        markup
    }

    /// The markers that open another turn than the assistant's at the start of a line.
    pub(super) fn turns(&self) -> &[String] {
        &self.turns
    }

    /// A message's text without markers, `protect` applied to it. What the template looks
    /// for in answers stays in them.
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
        // Each piece's next place, found again only when it has been passed.
        let mut next: Vec<Option<usize>> = self.read.iter().map(|piece| text.find(piece)).collect();
        let mut shielded = String::with_capacity(text.len());
        let mut at = 0;
        loop {
            for (place, piece) in next.iter_mut().zip(&self.read) {
                if place.is_some_and(|place| place < at) {
                    *place = text[at..].find(piece).map(|found| at + found);
                }
            }
            let places = next.iter().zip(&self.read);
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

    /// Adds the markers of what stands before, between or after messages. Of what stands
    /// before all of them, only the last line can open a turn: the rest is a preamble.
    fn read_around(&mut self, parts: &[Part<'_>], is_head: bool, opens_turn: bool) {
        let mut lines = lines(parts, is_head);
        lines.retain(|line| !line.texts.is_empty());
        let skipped = if is_head {
            lines.len().saturating_sub(1)
        } else {
            0
        };
        let mut found = false;
        for line in &lines[skipped..] {
            for text in &line.texts {
                found |= self.read_text(*text, opens_turn);
            }
        }
        let is_all_text = parts.iter().all(|part| part.kind == PartKind::Text);
        // Where nothing says in words who speaks, signs do.
        if !found
            && is_all_text
            && let Some(text) = lines.last().and_then(|line| line.texts.last())
            && text.text.chars().nth(1).is_some()
        {
            self.add(text.text, text.begins_line, opens_turn);
        }
    }

    /// Adds the markers of a text on one line. Returns whether there are any.
    fn read_text(&mut self, text: LineText<'_>, opens_turn: bool) -> bool {
        let mut found = false;
        let mut behind = text.behind;
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
            let opens = match behind {
                Behind::Nothing => true,
                Behind::Separator => !is_bare,
                Behind::Special => false,
            };
            if opens && words.contains(char::is_alphanumeric) {
                self.add(words, text.begins_line && at == 0, opens_turn);
                found = true;
            }
            behind = Behind::Separator;
            let tag = tags.iter().find(|tag| tag.start() == end);
            at = tag.map_or(end, regex::Match::end);
        }
        found
    }

    fn add(&mut self, marker: &str, begins_line: bool, opens_turn: bool) {
        match begins_line {
            true => add(&mut self.lines, marker),
            false => add(&mut self.inline, marker),
        }
        if begins_line && opens_turn {
            add(&mut self.turns, marker);
        }
    }
}

/// Those of `pieces` on which it depends what a template makes of an answer that has them.
fn read_in_answers(template: &ChatTemplate, mut pieces: Vec<String>) -> Vec<String> {
    use Role::{Assistant, User};
    // What opens comes before what closes, as it would in an answer.
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
    let is_read = |at: usize, piece: &str| {
        let without = written(Some(at));
        let without = without.map(|text| text.map(|text| text.replace(EDGE, piece)));
        without != with_all
    };
    let read = pieces.iter().enumerate();
    let read = read.filter(|(at, piece)| is_read(*at, piece));
    read.map(|(_, piece)| piece.clone()).collect()
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

/// What a text on a line stands behind.
#[derive(Clone, Copy)]
enum Behind {
    Nothing,
    Separator,
    Special,
}

/// Text on a line, never blank.
#[derive(Clone, Copy)]
struct LineText<'a> {
    text: &'a str,
    begins_line: bool,
    behind: Behind,
}

/// One line of what stands around messages.
#[derive(Default)]
struct Line<'a> {
    texts: Vec<LineText<'a>>,
}

/// The lines of what stands around messages. The first one begins behind a message, unless
/// it `begins` everything.
fn lines<'a>(parts: &[Part<'a>], begins: bool) -> Vec<Line<'a>> {
    let mut lines = vec![Line::default()];
    let (mut begins_line, mut behind) = (begins, Behind::Nothing);
    for part in parts {
        match part.kind {
            PartKind::Text => {}
            PartKind::Separator => {
                // What begins everything begins a line as well.
                begins_line = begins_line && lines.len() == 1;
                behind = Behind::Separator;
                continue;
            }
            PartKind::Control | PartKind::Markup => {
                begins_line = false;
                behind = Behind::Special;
                continue;
            }
        }
        for (at, piece) in part.text.split('\n').enumerate() {
            if at > 0 {
                lines.push(Line::default());
                (begins_line, behind) = (true, Behind::Nothing);
            }
            let text = piece.trim();
            if let (false, Some(line)) = (text.is_empty(), lines.last_mut()) {
                line.texts.push(LineText {
                    text,
                    begins_line,
                    behind,
                });
                begins_line = false;
            }
        }
    }
    lines
}
