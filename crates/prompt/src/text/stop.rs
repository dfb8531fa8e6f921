//! Stop strings and role markers: where an answer ends by its text.
//!
//! A **stop string** comes from the client. It counts anywhere. The answer ends at the first
//! position at which one is complete, and is cut where that one starts; if several are complete
//! there, where the earliest of them starts. This is what "the API will stop generating" says,
//! and it needs no lookahead: waiting for a longer stop string that started earlier would cost
//! tokens for a text that is not sent.
//!
//! A **role marker** belongs to a profile (`# Query:`) and would open the next turn. It counts
//! only at the very start of a line, including the answer's first line. The line breaks and
//! blank lines before it belong to the turn's markup and are cut with it.
//!
//! Inside a fenced code block a marker may be code (`# Answer:` is a comment in Python), and
//! code is kept. But a base model may also forget to close the block and continue with the next
//! turn. In a code block a marker is a **header** if it fills its line and a blank line
//! precedes it. Everything from the block's first header on is held back until it can be
//! classified: it is text if the block is closed, and the next turn, which is cut, if a second
//! header comes or the answer ends with the block open.
//!
//! If the token limit is reached within a marker, its beginning is cut if it contains a letter
//! and is not the whole answer; a `#` alone is text.
//!
//! Only text that may turn out to be cut is held back until that is decided: the beginning of a
//! stop string or marker, the text after a header in an open code block, and, if there are
//! markers, the blank lines at the end of the text.
//!
//! # Aligning tokens with the text
//! Positions count the bytes of all text pushed so far, and [`StopMatcher::sent`] is the range
//! of it that was returned. Let `start..end` be a token's text in these positions, where `end`
//! is taken only when its last byte has left the decoder (until then it is not known, and the
//! token waits). The token has been sent completely once `end` is at most `sent().end`, and can
//! be reported with the text. After the last piece, a token with `start < sent().end` was sent
//! in part and is reported too; later tokens were cut. A token that ends by `sent().start` was
//! trimmed from the start of the answer.

mod fence;

use std::ops::Range;

use fence::Fences;

/// The result of pushing a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Text that can be sent now; may be empty.
    pub text: String,
    /// Whether the answer is over. Text pushed later is dropped.
    pub stopped: bool,
    /// The number of bytes, of all text pushed so far, that are settled: sent, or trimmed from
    /// the start. Text after them is held back, or cut if `stopped`.
    pub emitted: usize,
}

/// Finds the end of an answer in text that arrives in pieces. The result does not depend on how
/// the text was split.
///
/// ```
/// use incant_prompt::text::stop::StopMatcher;
///
/// let mut matcher = StopMatcher::new(&["END".to_owned()], &["# Query:".to_owned()]);
/// assert_eq!(matcher.push("Blue, E").text, "Blue, ");
/// assert_eq!(matcher.push("arl.\n").text, "Earl.");
/// let last = matcher.push("\n# Query:\nAnd now?");
/// assert_eq!((last.text.as_str(), last.stopped), ("", true));
/// ```
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Pattern>,
    markers: Markers,
    /// Whether leading white space is still being dropped.
    trimming: bool,
    /// Bytes dropped from the start.
    trimmed: usize,
    /// Bytes pushed; once stopped, those before the cut.
    pushed: usize,
    /// The end of the pushed text, not returned yet.
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// Creates a matcher for one answer.
    ///
    /// An empty string among `stops` or `markers` would end every answer. It is ignored here;
    /// rejecting it is up to the caller.
    pub fn new(stops: &[String], markers: &[String]) -> StopMatcher {
        StopMatcher {
            stops: patterns(stops),
            markers: Markers::new(markers),
            trimming: false,
            trimmed: 0,
            pushed: 0,
            held: String::new(),
            stopped: false,
        }
    }

    /// Sets whether to drop the spaces, tabs and line breaks at the start of the answer, which
    /// base models tend to write. The answer is then the text after them, and stop strings,
    /// lines and fences are searched for in that alone. Must be called before the first piece;
    /// off by default.
    pub fn trim_start(mut self, trim: bool) -> StopMatcher {
        self.trimming = trim;
        self
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Output {
        if self.stopped {
            return self.settle(self.pushed);
        }
        let text = self.trim(text);
        let start = self.pushed;
        self.held.push_str(text);
        self.pushed += text.len();
        for (at, byte) in (start..).zip(text.bytes()) {
            let stop = self.stops.iter_mut().filter_map(|stop| stop.push(at, byte));
            let stop = stop.min();
            let marker = self.markers.push(at, byte);
            if stop.is_some() || marker.is_some() {
                let cuts = [stop, marker, self.markers.header];
                self.cut(cuts.into_iter().flatten().min());
                self.stopped = true;
                break;
            }
        }
        if self.stopped {
            return self.settle(self.pushed);
        }
        let begun = self.stops.iter().map(|stop| self.pushed - stop.matched);
        let undecided = begun.chain(self.markers.undecided_from(self.pushed)).min();
        self.settle(undecided.unwrap_or(self.pushed))
    }

    /// Ends the text and returns the text that was still held back, except for a turn that
    /// began in an open code block and, if the text was `cut_short`, a partial marker. The
    /// output is `stopped` if there was either.
    pub fn finish(&mut self, cut_short: bool) -> Output {
        let mut cut = None;
        if !self.stopped {
            let begun = self.markers.begun_by(self.pushed);
            let begun = begun.filter(|&at| cut_short && at > self.trimmed);
            // The end of the text ends the last line like a line break.
            let second = self.markers.push(self.pushed, b'\n');
            cut = [begun, second, self.markers.header]
                .into_iter()
                .flatten()
                .min();
        }
        self.cut(cut);
        self.stopped |= cut.is_some();
        self.settle(self.pushed)
    }

    /// Drops the text from position `at` on.
    fn cut(&mut self, at: Option<usize>) {
        if let Some(at) = at {
            self.held.truncate(at - self.settled());
            self.pushed = at;
        }
    }

    /// The range of the pushed text that was returned. Its start is above 0 only if the
    /// answer's start was trimmed.
    pub fn sent(&self) -> Range<usize> {
        self.trimmed..self.settled()
    }

    /// Drops leading white space as long as nothing else has come.
    fn trim<'t>(&mut self, text: &'t str) -> &'t str {
        if !self.trimming {
            return text;
        }
        let rest = text.trim_start_matches([' ', '\t', '\r', '\n']);
        self.trimmed += text.len() - rest.len();
        self.pushed = self.trimmed;
        self.markers.start_at(self.trimmed);
        self.trimming = rest.is_empty();
        rest
    }

    /// Bytes that are no longer held.
    fn settled(&self) -> usize {
        self.pushed - self.held.len()
    }

    /// Returns the held text up to position `end`.
    fn settle(&mut self, end: usize) -> Output {
        if end == self.settled() {
            return Output {
                text: String::new(),
                stopped: self.stopped,
                emitted: end,
            };
        }
        let rest = self.held.split_off(end - self.settled());
        let text = std::mem::replace(&mut self.held, rest);
        Output {
            text,
            stopped: self.stopped,
            emitted: end,
        }
    }
}

/// The role markers, and the state of the lines that they may begin.
#[derive(Clone, Debug)]
struct Markers {
    patterns: Vec<Pattern>,
    /// Bytes of the longest marker.
    longest: usize,
    fences: Fences,
    /// The line breaks and blank lines that the text ends with now.
    blanks: Option<Blanks>,
    /// Positions where a marker counts, in order, as far back as a partial one may start.
    line_starts: Vec<LineStart>,
    /// In a code block: where the answer ends if the current line, so far a marker and blanks,
    /// ends with nothing but blanks.
    header_line: Option<usize>,
    /// Where the answer ends if the open code block is never closed: before its first header.
    header: Option<usize>,
}

/// Blank lines at the end of the text, with the line break before them.
#[derive(Clone, Copy, Debug)]
struct Blanks {
    from: usize,
    line_breaks: usize,
    /// Whether the last byte was `\r`: a `\n` then belongs to the same line break.
    carriage_return: bool,
}

/// The start of a line.
#[derive(Clone, Copy, Debug)]
struct LineStart {
    at: usize,
    /// Where the answer ends if a marker begins here.
    cut: usize,
    /// Whether the line is in a code block, where a marker has to be a header.
    in_code: bool,
}

impl Markers {
    fn new(markers: &[String]) -> Markers {
        let patterns = patterns(markers);
        let mut markers = Markers {
            longest: patterns.iter().map(Pattern::len).max().unwrap_or(0),
            patterns,
            fences: Fences::new(),
            blanks: None,
            line_starts: Vec::new(),
            header_line: None,
            header: None,
        };
        markers.start_at(0);
        markers
    }

    /// Sets the start of the answer, which counts as the start of a line.
    fn start_at(&mut self, at: usize) {
        self.blanks = Some(Blanks {
            from: at,
            line_breaks: 0,
            carriage_return: false,
        });
        self.line_starts = vec![LineStart {
            at,
            cut: at,
            in_code: false,
        }];
    }

    /// Takes the byte at position `at`. Returns the end of the answer if the byte decides that
    /// it is over.
    fn push(&mut self, at: usize, byte: u8) -> Option<usize> {
        let blank = matches!(byte, b' ' | b'\t');
        let line_break = matches!(byte, b'\n' | b'\r');
        if !blank && !line_break {
            self.header_line = None;
        }
        let mut cut = None;
        for marker in &mut self.patterns {
            let Some(start) = marker.push(at, byte) else {
                continue;
            };
            match self.line_starts.iter().find(|line| line.at == start) {
                Some(line) if line.in_code => {
                    self.header_line = self.header_line.into_iter().chain([line.cut]).min();
                }
                Some(line) => cut = cut.into_iter().chain([line.cut]).min(),
                None => {}
            }
        }

        self.fences.push(byte);
        if line_break {
            cut = cut.or(self.end_line(at, byte));
        } else if !blank {
            self.blanks = None;
        } else if let Some(blanks) = &mut self.blanks {
            blanks.carriage_return = false;
        }
        cut
    }

    /// Takes the line break at position `at`.
    fn end_line(&mut self, at: usize, byte: u8) -> Option<usize> {
        let in_code = self.fences.inside();
        let mut cut = None;
        match (in_code, self.header_line.take(), self.header) {
            (false, ..) => self.header = None,
            (true, Some(_), Some(first)) => cut = Some(first),
            (true, Some(line), None) => self.header = Some(line),
            (true, None, _) => {}
        }

        let blanks = self.blanks.get_or_insert(Blanks {
            from: at,
            line_breaks: 0,
            carriage_return: false,
        });
        if byte == b'\r' || !blanks.carriage_return {
            blanks.line_breaks += 1;
        }
        blanks.carriage_return = byte == b'\r';
        let next = at + 1;
        self.line_starts
            .retain(|line| line.at + self.longest >= next);
        if !in_code || blanks.line_breaks > 1 {
            self.line_starts.push(LineStart {
                at: next,
                cut: blanks.from,
                in_code,
            });
        }
        cut
    }

    /// Where text that ends at `end` would be cut for a partial marker there, if the part
    /// satisfies `counts`.
    fn begun(&self, end: usize, counts: impl Fn(&[u8]) -> bool) -> Option<usize> {
        let begun = self.patterns.iter().filter_map(|marker| {
            let mut lengths = marker
                .lengths()
                .filter(|&length| counts(&marker.bytes[..length]));
            lengths.find_map(|length| {
                let start = self.line_starts.iter().find(|line| line.at + length == end);
                start.map(|line| line.cut)
            })
        });
        begun.min()
    }

    /// Where text that ends at `end` is cut if no more text follows.
    fn begun_by(&self, end: usize) -> Option<usize> {
        let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii();
        self.begun(end, |begun| begun.iter().any(is_letter))
    }

    /// The position from which text that ends at `end` may turn out to be cut.
    fn undecided_from(&self, end: usize) -> Option<usize> {
        let begun = self.begun(end, |_| true);
        let blank = self.blanks.filter(|_| !self.patterns.is_empty());
        let blank = blank.map(|blanks| blanks.from);
        let header = self.header.or(self.header_line);
        [begun, blank, header].into_iter().flatten().min()
    }
}

/// One string, searched for byte by byte (Knuth–Morris–Pratt 1977).
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `borders[n]`: the length of the longest string, shorter than n bytes, that the first n
    /// bytes both begin and end with.
    borders: Vec<usize>,
    /// The length of its longest prefix that the text ends with.
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Pattern {
        let mut pattern = Pattern {
            bytes: text.as_bytes().to_vec(),
            borders: vec![0, 0],
            matched: 0,
        };
        // The borders of a string are found by searching for it in its own tail.
        for at in 1..pattern.bytes.len() {
            pattern.push(at, pattern.bytes[at]);
            pattern.borders.push(pattern.matched);
        }
        pattern.matched = 0;
        pattern
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the byte at position `at`; returns where the string starts if this completes it.
    fn push(&mut self, at: usize, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.bytes.get(self.matched) != Some(&byte) {
            self.matched = self.borders[self.matched];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
        (self.matched == self.len()).then(|| at + 1 - self.len())
    }

    /// The lengths of all its prefixes that the text ends with, longest first.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(self.matched), |&n| Some(self.borders[n]))
            .take_while(|&length| length > 0)
    }
}

/// The patterns of all non-empty texts.
fn patterns(texts: &[String]) -> Vec<Pattern> {
    let texts = texts.iter().filter(|text| !text.is_empty());
    texts.map(|text| Pattern::new(text)).collect()
}

#[cfg(test)]
mod tests;
