//! Pre-tokenizers: how byte-level BPE cuts a text into words.
//!
//! A model's words are written as regular expressions with a lookahead,
//! `\s+(?!\S)`: a run of white space gives up its last character to the word
//! that follows. Here the run is matched whole and shortened afterwards, which
//! says the same without a backtracking engine: matching stays linear in the
//! text, also for megabytes of white space.

use regex::Regex;

/// Letters with at most a space before them, numbers likewise, other symbols
/// likewise, white space; and English contractions (OpenAI's GPT-2).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";

/// Contractions in any case, any one symbol before letters, numbers of up to
/// three digits, line ends kept together (Llama 3).
const LLAMA3: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// The same with every digit alone (Qwen 2).
const QWEN2: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// The names that `tokenizer.ggml.pre` may have here, as an error lists them.
pub(super) const SUPPORTED: &str = "default, gpt-2, llama-bpe, qwen2, smollm";

/// A way to cut text into words: stages, each of which cuts what the stage
/// before it left into smaller parts.
#[derive(Debug)]
pub(super) struct Words {
    stages: Vec<Stage>,
}

#[derive(Debug)]
enum Stage {
    /// Matches are parts, and so is what lies between them.
    Isolate(Regex),
    /// Matches cover everything; white space gives up its last character.
    Words {
        regex: Regex,
        /// Whether runs of white space that end in a line end are a branch of
        /// their own, which gives up nothing.
        line_ends: bool,
    },
}

impl Words {
    /// The pre-tokenizer called `pre` in GGUF metadata, if it is supported.
    /// Other names of the same rules, as llama.cpp knows them, are too.
    pub(super) fn named(pre: &str) -> Option<Words> {
        let stages = match pre {
            "gpt-2" | "phi-2" => vec![Stage::words(GPT2, false)],
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
                vec![Stage::isolate(r"\p{N}"), Stage::words(GPT2, false)]
            }
            "llama-bpe" | "llama3" | "llama-v3" => vec![Stage::words(LLAMA3, true)],
            "qwen2" | "deepseek-r1-qwen" => vec![Stage::words(QWEN2, true)],
            // llama.cpp's rules for files that name none.
            "default" => vec![
                Stage::isolate(r"[\p{P}$+<=>^~|]+"),
                Stage::words(GPT2, false),
                Stage::isolate(r"\p{N}+"),
                Stage::isolate(r"[0-9][0-9][0-9]"),
            ],
            _ => return None,
        };
        Some(Words { stages })
    }

    /// Whether words that are pieces skip the merges under `pre`.
    pub(super) fn whole_words(pre: &str) -> bool {
        matches!(pre, "llama-bpe" | "llama3" | "llama-v3")
    }

    /// Calls `word` with each word of `text` in order; together they are it.
    pub(super) fn split<'a>(&self, text: &'a str, mut word: impl FnMut(&'a str)) {
        split(&self.stages, text, &mut word);
    }
}

fn split<'a>(stages: &[Stage], text: &'a str, word: &mut dyn FnMut(&'a str)) {
    let Some((stage, rest)) = stages.split_first() else {
        word(text);
        return;
    };
    match stage {
        Stage::Isolate(regex) => {
            let mut end = 0;
            for part in regex.find_iter(text) {
                if part.start() > end {
                    split(rest, &text[end..part.start()], word);
                }
                split(rest, part.as_str(), word);
                end = part.end();
            }
            if end < text.len() {
                split(rest, &text[end..], word);
            }
        }
        Stage::Words { regex, line_ends } => {
            let mut at = 0;
            // Some branch matches every character, so matches leave no gaps.
            while let Some(found) = regex.find_at(text, at) {
                let end = shorten(text, at, found.end(), *line_ends);
                split(rest, &text[at..end], word);
                at = end;
            }
        }
    }
}

/// Where the word that matched from `start` to `end` really ends.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        Words::named(pre)
            .expect("supported")
            .split(text, |word| words.push(word.to_owned()));
        assert_eq!(words.concat(), text);
        words
    }

    #[test]
    fn every_supported_name_compiles() {
        for pre in SUPPORTED.split(", ") {
            assert!(Words::named(pre).is_some(), "{pre}");
        }
        assert!(Words::named("tekken").is_none());
    }

    #[test]
    fn white_space_gives_its_last_character_to_the_word() {
        assert_eq!(words("gpt-2", "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(words("gpt-2", "a\n\n\nb"), ["a", "\n\n", "\n", "b"]);
        assert_eq!(words("gpt-2", "a b"), ["a", " b"]);
        assert_eq!(words("llama-bpe", "a \n\n  b"), ["a", " \n\n", " ", " b"]);
        assert_eq!(
            words("qwen2", "a\t\tb!\n\nc"),
            ["a", "\t", "\tb", "!\n\n", "c"]
        );
        assert_eq!(
            words("gpt-2", "a\u{3000}\u{3000}b"),
            ["a", "\u{3000}", "\u{3000}", "b"]
        );
    }

    #[test]
    fn numbers_are_grouped_as_the_model_wants() {
        assert_eq!(words("gpt-2", "x 12345"), ["x", " 12345"]);
        assert_eq!(words("llama-bpe", "x 12345"), ["x", " ", "123", "45"]);
        assert_eq!(words("qwen2", "x 123"), ["x", " ", "1", "2", "3"]);
        assert_eq!(words("smollm", "x  12"), ["x", "  ", "1", "2"]);
        assert_eq!(words("default", "x 12345."), ["x", " ", "123", "45", "."]);
    }

    #[test]
    fn contractions_are_words() {
        assert_eq!(words("gpt-2", "it's IT'S"), ["it", "'s", " IT", "'", "S"]);
        assert_eq!(words("llama-bpe", "it's IT'S"), ["it", "'s", " IT", "'S"]);
    }
}
