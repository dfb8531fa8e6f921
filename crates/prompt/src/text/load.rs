//! Builds a tokenizer from a GGUF's metadata.

use std::path::{Path, PathBuf};

use super::bpe::{self, Bpe};
use super::limits::Measure;
use super::occurrences::OccurrenceCache;
use super::pre_tokenizer::{self, PreTokenizer};
use super::special_tokens::SpecialTokens;
use super::spm::{self, Spm};
use super::tokenizer::{Encoder, Facts, Tokenizer};
use super::vocabulary::{Arena, TokenKind, Vocabulary};
use incant_gguf::{Gguf, GgufError, Metadata};

/// A GGUF's tokenizer cannot be used; one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A metadata key is missing or of the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The metadata is unsupported or contradicts itself.
    #[error("{}: {cause}", path.display())]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// The cause. (Part of the message, so not a `source`.)
        cause: VocabularyError,
    },
}

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// Neither `llama` nor `gpt2`.
    #[error("tokenizer `{}` is not supported (supported: llama, gpt2)", .0.escape_debug())]
    Model(String),
    /// An unsupported pre-tokenizer.
    #[error("pre-tokenizer `{}` is not supported (supported: {})", .0.escape_debug(), pre_tokenizer::supported())]
    Pre(String),
    /// There are no tokens.
    #[error("the vocabulary is empty")]
    Empty,
    /// The pieces are too long in total.
    #[error("the vocabulary's texts exceed 4 GiB")]
    TooLarge,
    /// An array does not have one entry per token.
    #[error("{key} has {found} entries for {tokens} tokens")]
    Length {
        /// The array's key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// A token type outside 1 to 6.
    #[error("token {id} has the unknown type {kind}")]
    Kind {
        /// The token.
        id: usize,
        /// Its type in the file.
        kind: i32,
    },
    /// A score is NaN.
    #[error("token {0} has a score that is not a number")]
    Score(usize),
    /// A special token's id is outside the vocabulary.
    #[error("{key} is {id}, but there are only {tokens} tokens")]
    Id {
        /// The key.
        key: &'static str,
        /// Its value.
        id: u32,
        /// The number of tokens.
        tokens: u32,
    },
    /// A merge of pieces that are not in the vocabulary.
    #[error("merge {at} needs the piece `{}`, which the vocabulary does not have", .piece.escape_debug())]
    Merge {
        /// The index of the merge in the list.
        at: usize,
        /// The piece.
        piece: String,
    },
    /// Characters outside the vocabulary could not be encoded.
    #[error("the vocabulary has neither a piece for each byte nor an unknown token")]
    NoFallback,
    /// The special tokens are too many or too long to be indexed.
    #[error("the special tokens cannot be indexed: {0}")]
    SpecialTokens(aho_corasick::BuildError),
}

/// Texts of tokens that end generation and are never meant as text: turn and text ends of the
/// common model families. Some files declare them as ordinary pieces; they are treated as
/// control tokens all the same, as in llama.cpp.
const ENDS: &[&str] = &[
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// Texts of tokens that end generation if the file declares them as control tokens: the ends of
/// a file in code models, and texts that others use as markup (`</s>` is an HTML tag in Gemma's
/// vocabulary).
const ENDS_IF_CONTROL: &[&str] = &[
    "<|fim_pad|>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<fim_pad>",
    "<reponame>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "</s>",
];

impl Tokenizer {
    /// Builds the tokenizer that `gguf` describes.
    ///
    /// # Errors
    /// The metadata has no vocabulary, an unsupported one, or contradicts itself.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        gguf.check_whole()?;
        let metadata = gguf.metadata();
        let error = |cause| vocabulary_error(gguf.path(), cause);
        let model = metadata.str("tokenizer.ggml.model")?;
        let pre = metadata.get_str("tokenizer.ggml.pre")?.unwrap_or("default");
        let (spm, pre_tokenizer) = match model {
            "llama" => (true, None),
            "gpt2" => {
                let pre_tokenizer = PreTokenizer::named(pre);
                let pre_tokenizer =
                    pre_tokenizer.ok_or_else(|| error(VocabularyError::Pre(pre.to_owned())))?;
                (false, Some(pre_tokenizer))
            }
            _ => return Err(error(VocabularyError::Model(model.to_owned()))),
        };

        let (pieces, kinds) = pieces(gguf)?;
        let texts = texts(&pieces, &kinds, spm).ok_or_else(|| error(VocabularyError::TooLarge))?;
        let vocabulary = Vocabulary::new(pieces, kinds);
        let ids = SpecialIds {
            path: gguf.path(),
            metadata,
            vocabulary: &vocabulary,
        };
        let encoder = match pre_tokenizer {
            None => {
                let unknown = ids.get("tokenizer.ggml.unknown_token_id", Some(0))?;
                Encoder::Spm(scored(gguf, &vocabulary, unknown)?)
            }
            Some(pre_tokenizer) => Encoder::Bpe(merged(gguf, &vocabulary, pre_tokenizer, pre)?),
        };
        let facts = facts(&ids, spm, pre)?;
        let special_tokens = SpecialTokens::new(&vocabulary)
            .map_err(|cause| error(VocabularyError::SpecialTokens(cause)))?;
        Ok(Tokenizer {
            measure: measure(&vocabulary, &special_tokens, &encoder),
            vocabulary,
            texts,
            special_tokens,
            encoder,
            facts,
            occurrence_cache: OccurrenceCache::default(),
        })
    }
}

fn vocabulary_error(path: &Path, cause: VocabularyError) -> TokenizerError {
    TokenizerError::Vocabulary {
        path: path.to_owned(),
        cause,
    }
}

/// All pieces and their kinds.
fn pieces(gguf: &Gguf) -> Result<(Arena, Vec<TokenKind>), TokenizerError> {
    let metadata = gguf.metadata();
    let error = |cause| vocabulary_error(gguf.path(), cause);
    let tokens = metadata.strs("tokenizer.ggml.tokens")?;
    if tokens.len() == 0 {
        return Err(error(VocabularyError::Empty));
    }
    let count = tokens.len();
    let mut pieces = Arena::default();
    for piece in tokens {
        if !pieces.push(piece.as_bytes()) {
            return Err(error(VocabularyError::TooLarge));
        }
    }

    let key = "tokenizer.ggml.token_type";
    let mut kinds = Vec::with_capacity(count);
    if let Some(types) = metadata.get_i32s(key)? {
        check_length(gguf, key, types.len(), count)?;
        for (id, kind) in types.into_iter().enumerate() {
            let known = TokenKind::from_id(kind);
            kinds.push(known.ok_or_else(|| error(VocabularyError::Kind { id, kind }))?);
        }
    } else {
        kinds.resize(count, TokenKind::Normal);
    }
    for (kind, id) in kinds.iter_mut().zip(0..) {
        let piece = pieces.get(id).unwrap_or_default();
        if ENDS.iter().any(|end| end.as_bytes() == piece) {
            *kind = TokenKind::Control;
        }
    }
    Ok((pieces, kinds))
}

fn check_length(
    gguf: &Gguf,
    key: &'static str,
    found: usize,
    tokens: usize,
) -> Result<(), TokenizerError> {
    if found == tokens {
        return Ok(());
    }
    let cause = VocabularyError::Length { key, found, tokens };
    Err(vocabulary_error(gguf.path(), cause))
}

/// The bytes that each token adds to a text; `None` if they are too long in total.
fn texts(pieces: &Arena, kinds: &[TokenKind], spm: bool) -> Option<Arena> {
    let mut texts = Arena::default();
    let mut buffer = Vec::new();
    for (&kind, id) in kinds.iter().zip(0..) {
        let piece = std::str::from_utf8(pieces.get(id)?).ok()?;
        buffer.clear();
        match kind {
            TokenKind::Normal if spm => {
                let mut utf8 = [0; 4];
                for c in piece.chars() {
                    let c = if c == spm::SPACE { ' ' } else { c };
                    buffer.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
                }
            }
            TokenKind::Normal => {
                let mut utf8 = [0; 4];
                for c in piece.chars() {
                    match bpe::byte(c) {
                        Some(byte) => buffer.push(byte),
                        // Outside the alphabet: literal text.
                        None => buffer.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes()),
                    }
                }
            }
            TokenKind::UserDefined => buffer.extend_from_slice(piece.as_bytes()),
            TokenKind::Byte => buffer.extend(byte_piece(piece)),
            TokenKind::Control | TokenKind::Unknown | TokenKind::Unused => {}
        }
        if !texts.push(&buffer) {
            return None;
        }
    }
    Some(texts)
}

/// The byte of a piece such as `<0x0A>`.
fn byte_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    // `from_str_radix` would accept a sign as well.
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

fn scored(
    gguf: &Gguf,
    vocabulary: &Vocabulary,
    unknown: Option<u32>,
) -> Result<Spm, TokenizerError> {
    let metadata = gguf.metadata();
    let key = "tokenizer.ggml.scores";
    let scores = metadata.f32s(key)?;
    check_length(gguf, key, scores.len(), vocabulary.len() as usize)?;
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(vocabulary_error(gguf.path(), VocabularyError::Score(id)));
    }
    let mut bytes = Box::new([None; 256]);
    for (id, kind, piece) in vocabulary.iter() {
        if kind == TokenKind::Byte
            && let Some(byte) = byte_piece(piece)
        {
            bytes[byte as usize] = Some(id);
        }
    }
    if unknown.is_none() && bytes.contains(&None) {
        return Err(vocabulary_error(gguf.path(), VocabularyError::NoFallback));
    }
    let space_prefix = metadata.get_bool("tokenizer.ggml.add_space_prefix")?;
    let space_prefix = space_prefix.unwrap_or(true);
    Ok(Spm::new(vocabulary, &scores, bytes, unknown, space_prefix))
}

/// Measures texts and tokens. The length of an ordinary token is the number of characters of
/// its piece; in a byte-level vocabulary, the number of bytes it stands for. A special token
/// has the length of its literal piece, and a token for a byte or an unknown character stands
/// for one character at most.
fn measure(vocabulary: &Vocabulary, special_tokens: &SpecialTokens, encoder: &Encoder) -> Measure {
    let texts = vocabulary.iter().filter(|(_, kind, _)| kind.is_text());
    let texts = texts.map(|(_, _, piece)| piece.chars().count());
    let pieces = special_tokens.ids().filter_map(|id| vocabulary.piece(id));
    let mut lengths = Box::new([0; 256]);
    let counted = |byte: u8| match encoder {
        // The first byte of each character.
        Encoder::Spm(_) => !matches!(byte, 0x80..0xc0),
        Encoder::Bpe(bpe) => bpe.has_byte(byte),
    };
    for byte in 0..=u8::MAX {
        lengths[byte as usize] = u8::from(counted(byte));
    }
    let longest = match encoder {
        Encoder::Spm(_) => texts.chain(pieces.map(|piece| piece.chars().count())).max(),
        Encoder::Bpe(_) => texts.chain(pieces.map(str::len)).max(),
    };
    Measure {
        lengths,
        longest: longest.unwrap_or(1).max(1),
    }
}

fn merged(
    gguf: &Gguf,
    vocabulary: &Vocabulary,
    pre_tokenizer: PreTokenizer,
    pre: &str,
) -> Result<Bpe, TokenizerError> {
    let merges = gguf.metadata().strs("tokenizer.ggml.merges")?;
    let whole_words = PreTokenizer::whole_words(pre);
    Bpe::new(vocabulary, merges, pre_tokenizer, whole_words).map_err(|bad| {
        let cause = VocabularyError::Merge {
            at: bad.at,
            piece: bad.piece,
        };
        vocabulary_error(gguf.path(), cause)
    })
}

/// Looks up the ids of special tokens and checks them.
struct SpecialIds<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    vocabulary: &'a Vocabulary,
}

impl SpecialIds<'_> {
    /// The id under `key`, or `default` if that is a control or the unknown token.
    fn get(&self, key: &'static str, default: Option<u32>) -> Result<Option<u32>, TokenizerError> {
        let Some(id) = self.metadata.get_u32(key)? else {
            let special = |&id: &u32| {
                let kind = self.vocabulary.kind(id);
                matches!(kind, Some(TokenKind::Control | TokenKind::Unknown))
            };
            return Ok(default.filter(special));
        };
        let tokens = self.vocabulary.len();
        // Some files write −1, as a u32, for "there is none".
        if id == u32::MAX {
            return Ok(None);
        }
        if id >= tokens {
            let cause = VocabularyError::Id { key, id, tokens };
            return Err(vocabulary_error(self.path, cause));
        }
        Ok(Some(id))
    }
}

fn facts(ids: &SpecialIds<'_>, spm: bool, pre: &str) -> Result<Facts, TokenizerError> {
    // The defaults are SentencePiece's and llama.cpp's.
    let bos = ids.get("tokenizer.ggml.bos_token_id", spm.then_some(1))?;
    let eos = ids.get("tokenizer.ggml.eos_token_id", spm.then_some(2))?;
    let eot = ids.get("tokenizer.ggml.eot_token_id", None)?;
    let eom = ids.get("tokenizer.ggml.eom_token_id", None)?;
    let mut end_tokens: Vec<u32> = [eos, eot, eom].into_iter().flatten().collect();
    for (id, kind, piece) in ids.vocabulary.iter() {
        let known = ENDS.contains(&piece) || ENDS_IF_CONTROL.contains(&piece);
        if known && kind == TokenKind::Control {
            end_tokens.push(id);
        }
    }
    let mut seen = std::collections::HashSet::new();
    end_tokens.retain(|&id| seen.insert(id));

    let metadata = ids.metadata;
    let adds = |key, default| Ok::<_, GgufError>(metadata.get_bool(key)?.unwrap_or(default));
    let bos_default = spm || PreTokenizer::whole_words(pre);
    Ok(Facts {
        pre: pre.to_owned(),
        bos,
        eos,
        adds_bos: adds("tokenizer.ggml.add_bos_token", bos_default)? && bos.is_some(),
        adds_eos: adds("tokenizer.ggml.add_eos_token", false)? && eos.is_some(),
        end_tokens,
    })
}
