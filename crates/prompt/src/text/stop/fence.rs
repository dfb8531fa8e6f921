//! Tracks fenced code blocks in a text, byte by byte.
//!
//! The rules are CommonMark's (0.31, section 4.5) for a document without containers: a fence is
//! a line of at least three backticks or tildes, indented by at most three spaces; an info
//! string may follow an opening one, without a backtick if the fence is of backticks; a closing
//! one is of the same character, at least as long, and followed by nothing but blanks.
//!
//! A fence inside a list item may be indented further and is not seen. This does not matter at
//! the start of a line: text at column 0 ends the list item, and the fence with it.

/// The character and the length of a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fence {
    mark: u8,
    length: usize,
}

/// The state of the current line.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// Nothing but spaces (their number, at most three).
    Indent(usize),
    /// A run of marks that the last byte belongs to.
    Run(Fence),
    /// A run of at least three marks and something after it.
    Tail {
        fence: Fence,
        /// Only spaces and tabs follow.
        blank: bool,
        /// A backtick follows.
        backtick: bool,
    },
    /// Anything else: it is not a fence, whatever follows.
    Text,
}

/// Follows a text and tells whether it is in a fenced code block.
#[derive(Clone, Debug)]
pub(super) struct Fences {
    open: Option<Fence>,
    line: Line,
}

impl Fences {
    /// The state at the start of a text that is not inside any block.
    pub(super) fn new() -> Fences {
        Fences {
            open: None,
            line: Line::Indent(0),
        }
    }

    /// Takes the next byte. Each of `\n` and `\r` ends a line; `\r\n` then ends two, the second
    /// of which is empty, which does not matter here.
    pub(super) fn push(&mut self, byte: u8) {
        self.line = match (self.line, byte) {
            (_, b'\n' | b'\r') => {
                self.end_line();
                Line::Indent(0)
            }
            (Line::Indent(spaces), b' ') if spaces < 3 => Line::Indent(spaces + 1),
            (Line::Indent(_), b'`' | b'~') => Line::Run(Fence {
                mark: byte,
                length: 1,
            }),
            (Line::Run(fence), _) if byte == fence.mark => Line::Run(Fence {
                length: fence.length + 1,
                ..fence
            }),
            (Line::Run(fence), _) if fence.length >= 3 => Line::Tail {
                fence,
                blank: is_blank(byte),
                backtick: byte == b'`',
            },
            (
                Line::Tail {
                    fence,
                    blank,
                    backtick,
                },
                _,
            ) => Line::Tail {
                fence,
                blank: blank && is_blank(byte),
                backtick: backtick || byte == b'`',
            },
            (Line::Indent(_) | Line::Run(_) | Line::Text, _) => Line::Text,
        };
    }

    /// Whether the line that begins or continues here belongs to a fenced block. The opening
    /// line belongs to it only once it has ended, the closing one until then.
    pub(super) fn inside(&self) -> bool {
        self.open.is_some()
    }

    fn end_line(&mut self) {
        let (fence, blank, backtick) = match self.line {
            Line::Run(fence) if fence.length >= 3 => (fence, true, false),
            Line::Tail {
                fence,
                blank,
                backtick,
            } => (fence, blank, backtick),
            Line::Indent(_) | Line::Run(_) | Line::Text => return,
        };
        match self.open {
            None if fence.mark == b'~' || !backtick => self.open = Some(fence),
            Some(open) if blank && fence.mark == open.mark && fence.length >= open.length => {
                self.open = None;
            }
            None | Some(_) => {}
        }
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the position after the text is inside a block.
    fn inside(text: &str) -> bool {
        let mut fences = Fences::new();
        text.bytes().for_each(|byte| fences.push(byte));
        fences.inside()
    }

    #[test]
    fn a_fence_opens_and_closes() {
        assert!(!inside("```"));
        assert!(inside("```\n"));
        assert!(inside("```rust\nlet x;\n"));
        assert!(!inside("```rust\nlet x;\n```\n"));
        assert!(inside("a\n~~~ any `info` ~ here\n"));
        assert!(inside("   ```\r\ncode\r\n"));
        assert!(!inside("   ```\r\ncode\r\n  ```  \t\r\n"));
    }

    #[test]
    fn what_is_not_an_opening_fence() {
        for text in [
            "``\n",
            "    ```\n",
            "\t```\n",
            "a ```\n",
            "``` a`b\n",
            "`` `\n",
            "``~\n",
            "```a```\n",
        ] {
            assert!(!inside(text), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_a_closing_fence() {
        for line in ["```", "~~~", "```` rust", "    ````", "````~", "```` `"] {
            assert!(inside(&format!("````\n{line}\n")), "{line:?}");
        }
        for line in ["````", "`````", "   ````   "] {
            assert!(!inside(&format!("````\n{line}\n")), "{line:?}");
        }
    }
}
