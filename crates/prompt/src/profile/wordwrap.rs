//! Jinja2's filter `wordwrap`: lines broken as Python's `textwrap.wrap` breaks them.
//!
//! Widths are counted in characters, as in Python.

/// Options of line breaking.
#[derive(Clone, Copy)]
pub(super) struct Wrapping<'a> {
    /// Maximum characters per line, at least 1.
    pub(super) width: usize,
    /// Whether words that are longer are broken.
    pub(super) break_long_words: bool,
    /// The text between lines.
    pub(super) separator: &'a str,
    /// Whether words are broken at their hyphens.
    pub(super) break_on_hyphens: bool,
}

impl Wrapping<'_> {
    /// Wraps the lines of a text. Existing line breaks are replaced by the separator.
    pub(super) fn wrap(&self, text: &str) -> String {
        let lines: Vec<String> = lines(text)
            .into_iter()
            .map(|line| self.wrap_line(line).join(self.separator))
            .collect();
        lines.join(self.separator)
    }

    /// `TextWrapper._wrap_chunks`.
    fn wrap_line(&self, line: &str) -> Vec<String> {
        let line: Vec<char> = line.chars().collect();
        let mut chunks: Vec<&[char]> = if self.break_on_hyphens {
            chunks(&line)
        } else {
            words(&line)
        };
        chunks.reverse();
        let mut lines: Vec<String> = Vec::new();
        while let Some(&first) = chunks.last() {
            if is_blank(first) && !lines.is_empty() {
                chunks.pop();
            }
            let mut current: Vec<&[char]> = Vec::new();
            let mut length = 0;
            while let Some(&chunk) = chunks.last()
                && length + chunk.len() <= self.width
            {
                length += chunk.len();
                current.push(chunk);
                chunks.pop();
            }
            if let Some(&chunk) = chunks.last()
                && chunk.len() > self.width
            {
                if self.break_long_words {
                    let (head, tail) = chunk.split_at(self.place_to_break(chunk, length));
                    current.push(head);
                    chunks.pop();
                    chunks.push(tail);
                } else if current.is_empty() {
                    current.push(chunk);
                    chunks.pop();
                }
            }
            if current.last().is_some_and(|last| is_blank(last)) {
                current.pop();
            }
            if !current.is_empty() {
                lines.push(current.concat().into_iter().collect());
            }
        }
        lines
    }

    /// Where to break a word that is too long for a line, of which `length` characters are
    /// taken.
    fn place_to_break(&self, chunk: &[char], length: usize) -> usize {
        let available = self.width - length;
        if self.break_on_hyphens && chunk.len() > available {
            let hyphen = chunk[..available].iter().rposition(|&c| c == '-');
            if let Some(hyphen) = hyphen
                && chunk[..hyphen].iter().any(|&c| c != '-')
            {
                return hyphen + 1;
            }
        }
        available
    }
}

/// The lines of a text, as `str.splitlines` has them.
fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(ends_line) else {
            lines.push(rest);
            break;
        };
        lines.push(&rest[..at]);
        rest = &rest[at..];
        let end = rest.chars().next().map_or(0, char::len_utf8);
        rest = rest.strip_prefix("\r\n").unwrap_or(&rest[end..]);
    }
    lines
}

fn ends_line(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// White space, as defined by `textwrap`.
fn is_space(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

fn is_blank(chunk: &[char]) -> bool {
    chunk.iter().all(|c| c.is_whitespace())
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

fn is_letter(c: char) -> bool {
    is_word(c) && !c.is_numeric()
}

fn is_punctuated(c: char) -> bool {
    is_word(c) || "!\"'&.,?".contains(c)
}

/// Words and the space between them (`TextWrapper.wordsep_simple_re`).
fn words(line: &[char]) -> Vec<&[char]> {
    line.chunk_by(|&a, &b| is_space(a) == is_space(b)).collect()
}

/// The pieces that a line can be broken between (`TextWrapper.wordsep_re`): space, dashes
/// between words, words, and parts of words that end in a hyphen.
fn chunks(line: &[char]) -> Vec<&[char]> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < line.len() {
        let end = if is_space(line[start]) {
            run(line, start, is_space)
        } else if begins_dash(line, start) {
            run(line, start, |c| c == '-')
        } else {
            word_end(line, start)
        };
        chunks.push(&line[start..end]);
        start = end;
    }
    chunks
}

/// The end of the run of characters of a kind that begins at `start`.
fn run(line: &[char], start: usize, of_kind: impl Fn(char) -> bool) -> usize {
    let length = line[start..].iter().take_while(|&&c| of_kind(c)).count();
    start + length
}

/// Whether a dash of two or more hyphens between words begins at `at`.
fn begins_dash(line: &[char], at: usize) -> bool {
    if at == 0 || line[at] != '-' || !is_punctuated(line[at - 1]) {
        return false;
    }
    let end = run(line, at, |c| c == '-');
    end >= at + 2 && line.get(end).is_some_and(|&c| is_word(c))
}

/// The end of the word, or of its first part, that begins at `start`.
fn word_end(line: &[char], start: usize) -> usize {
    let mut at = start + 1;
    loop {
        if at == line.len() || is_space(line[at]) || begins_dash(line, at) {
            return at;
        }
        if line[at] == '-' && parts_word(line, at) {
            return at + 1;
        }
        at += 1;
    }
}

/// Whether a word can be broken after the hyphen at `at`.
fn parts_word(line: &[char], at: usize) -> bool {
    let is = |at: Option<usize>, kind: fn(char) -> bool| {
        at.and_then(|at| line.get(at)).is_some_and(|&c| kind(c))
    };
    let before = |by: usize| at.checked_sub(by);
    let two_letters = is(before(1), is_letter) && is(before(2), is_letter);
    let hyphenated =
        is(before(1), is_letter) && is(before(2), |c| c == '-') && is(before(3), is_letter);
    let next = match line.get(at + 2) {
        Some('-') => at + 3,
        _ => at + 2,
    };
    (two_letters || hyphenated) && is(Some(at + 1), is_letter) && is(Some(next), is_letter)
}
