//! Pre-tokenizers: byte-level BPE splits a text into words first.
//!
//! A model's pre-tokenizer is a regular expression with a lookahead, `\s+(?!\S)`: a run of
//! white space leaves its last character to the word that follows. Here the run is matched as a
//! whole and shortened afterwards, which is equivalent without a backtracking engine: matching
//! stays linear in the text, also for megabytes of white space.

#[cfg(test)]
mod tests;

use regex::Regex;

/// Letters with at most a space before them, numbers likewise, other symbols likewise, white
/// space; and English contractions (OpenAI's GPT-2).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";

/// Contractions in any case, any one symbol before letters, numbers of up to three digits, line
/// ends kept together (Llama 3).
const LLAMA3: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// Llama 3's with every digit separate (Qwen 2).
const QWEN2: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// Capital letters that follow small ones begin a word; every digit is separate, and slashes
/// stay with the symbols before them (Mistral's Tekken).
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";

/// Tekken's with contractions as the ends of words, and up to three digits together (OpenAI's
/// GPT-4o).
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";

/// Rules, which several names may share.
#[derive(Clone, Copy, Debug)]
enum Rules {
    /// llama.cpp's for files that name none.
    Default,
    Gpt2,
    /// GPT-2's with every digit separate.
    Gpt2Digits,
    Gpt4o,
    Llama3,
    Qwen2,
    Tekken,
}

/// The supported values of `tokenizer.ggml.pre`, and their rules in llama.cpp.
const NAMES: &[(&str, Rules)] = &[
    ("codeshell", Rules::Gpt2Digits),
    ("command-r", Rules::Gpt2Digits),
    ("dbrx", Rules::Llama3),
    ("deepseek-r1-qwen", Rules::Qwen2),
    ("default", Rules::Default),
    ("gpt-2", Rules::Gpt2),
    ("gpt-4o", Rules::Gpt4o),
    ("granite-docling", Rules::Gpt2),
    ("llama-bpe", Rules::Llama3),
    ("llama-v3", Rules::Llama3),
    ("llama3", Rules::Llama3),
    ("phi-2", Rules::Gpt2),
    ("qwen2", Rules::Qwen2),
    ("refact", Rules::Gpt2Digits),
    ("smaug-bpe", Rules::Llama3),
    ("smollm", Rules::Gpt2Digits),
    ("starcoder", Rules::Gpt2Digits),
    ("tekken", Rules::Tekken),
];

/// The supported names, formatted for an error.
pub(super) fn supported() -> String {
    let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

/// A pre-tokenizer: stages, each of which splits the parts of the stage before it further.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    stages: Vec<Stage>,
}

#[derive(Debug)]
enum Stage {
    /// Matches are parts, and so is the text between them.
    Isolate(Regex),
    /// Matches cover everything; white space leaves its last character to the next word.
    Words {
        regex: Regex,
        /// Whether a run of white space that ends in a line end is a branch of its own, which
        /// leaves nothing to the next word.
        line_ends: bool,
    },
}

impl PreTokenizer {
    /// The pre-tokenizer called `pre` in GGUF metadata, if it is supported.
    pub(super) fn named(pre: &str) -> Option<PreTokenizer> {
        let (_, rules) = NAMES.iter().find(|(name, _)| *name == pre)?;
        let stages = match rules {
            Rules::Default => vec![
                Stage::isolate(r"[\p{P}$+<=>^~|]+"),
                Stage::words(GPT2, false),
                Stage::isolate(r"\p{N}+"),
                Stage::isolate(r"[0-9][0-9][0-9]"),
            ],
            Rules::Gpt2 => vec![Stage::words(GPT2, false)],
            Rules::Gpt2Digits => vec![Stage::isolate(r"\p{N}"), Stage::words(GPT2, false)],
            Rules::Gpt4o => vec![Stage::words(GPT4O, true)],
            Rules::Llama3 => vec![Stage::words(LLAMA3, true)],
            Rules::Qwen2 => vec![Stage::words(QWEN2, true)],
            Rules::Tekken => vec![Stage::words(TEKKEN, true)],
        };
        Some(PreTokenizer { stages })
    }

    /// Whether words that are pieces skip the merges under `pre`.
    pub(super) fn whole_words(pre: &str) -> bool {
        matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "tekken")
    }

    /// Calls `word` with each word of `text` in order, until it fails; together the words are
    /// the whole text.
    pub(super) fn split<'a, E>(
        &self,
        text: &'a str,
        mut word: impl FnMut(&'a str) -> Result<(), E>,
    ) -> Result<(), E> {
        split(&self.stages, text, &mut word)
    }
}

fn split<'a, E>(
    stages: &[Stage],
    text: &'a str,
    word: &mut dyn FnMut(&'a str) -> Result<(), E>,
) -> Result<(), E> {
    let Some((stage, rest)) = stages.split_first() else {
        return word(text);
    };
    match stage {
        Stage::Isolate(regex) => {
            let mut end = 0;
            for part in regex.find_iter(text) {
                if part.start() > end {
                    split(rest, &text[end..part.start()], word)?;
                }
                split(rest, part.as_str(), word)?;
                end = part.end();
            }
            if end < text.len() {
                split(rest, &text[end..], word)?;
            }
        }
        Stage::Words { regex, line_ends } => {
            let mut at = 0;
            // Some branch matches every character, so there are no gaps between matches.
            while let Some(found) = regex.find_at(text, at) {
                let end = shorten(text, at, found.end(), *line_ends);
                split(rest, &text[at..end], word)?;
                at = end;
            }
        }
    }
    Ok(())
}

/// The actual end of the word that matched from `start` to `end`.
fn shorten(text: &str, start: usize, end: usize, line_ends: bool) -> usize {
    let matched = &text[start..end];
    if end == text.len() || !matched.chars().all(char::is_whitespace) {
        return end;
    }
    let mut chars = matched.chars();
    match chars.next_back() {
        Some('\r' | '\n') if line_ends => end,
        // A lone white-space character is a word.
        Some(last) if !chars.as_str().is_empty() => end - last.len_utf8(),
        _ => end,
    }
}

impl Stage {
    fn isolate(pattern: &str) -> Stage {
        Stage::Isolate(compile(pattern))
    }

    fn words(pattern: &str, line_ends: bool) -> Stage {
        Stage::Words {
            regex: compile(pattern),
            line_ends,
        }
    }
}

fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns are constants that a test compiles")
}
