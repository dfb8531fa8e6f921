//! Stand-in.

pub mod decode;
pub mod stop;

/// How control tokens in a text are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// As themselves.
    Parse,
    /// As text.
    Plain,
}

/// Stand-in: bytes, some pairs, and control tokens.
#[derive(Debug)]
pub struct Tokenizer {
    pieces: Vec<Vec<u8>>,
}

/// The stand-in's BOS.
pub const BOS: u32 = 256;
/// The stand-in's EOS.
pub const EOS: u32 = 257;
const CONTROLS: [(&str, u32); 2] = [("<bos>", BOS), ("<eos>", EOS)];

impl Tokenizer {
    /// Stand-in.
    pub fn stand_in() -> Tokenizer {
        let mut pieces: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        pieces.extend([Vec::new(), Vec::new()]);
        pieces.extend(
            ["th", "he", " a", "\n\n", "Qu", "er", "y:"].map(|piece| piece.as_bytes().to_vec()),
        );
        Tokenizer { pieces }
    }

    /// Ids.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let control = CONTROLS
                .iter()
                .find(|(name, _)| special == Special::Parse && rest.starts_with(name.as_bytes()));
            if let Some((name, id)) = control {
                ids.push(*id);
                rest = &rest[name.len()..];
                continue;
            }
            let pair = (258..self.pieces.len()).find(|id| rest.starts_with(&self.pieces[*id]));
            let id = pair.unwrap_or(rest[0] as usize);
            ids.push(id as u32);
            rest = &rest[self.pieces[id].len()..];
        }
        ids
    }

    /// Bytes.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        &self.pieces[id as usize]
    }

    /// Text of a control.
    pub fn token_text_special(&self, id: u32) -> &[u8] {
        let control = CONTROLS.iter().find(|(_, control)| *control == id);
        control.map_or_else(|| self.token_bytes(id), |(name, _)| name.as_bytes())
    }

    /// Text.
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let mut bytes = Vec::new();
        for id in ids {
            match CONTROLS.iter().find(|(_, control)| control == id) {
                Some((name, _)) if special => bytes.extend_from_slice(name.as_bytes()),
                Some(_) => {}
                None => bytes.extend_from_slice(self.token_bytes(*id)),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// BOS.
    pub fn bos(&self) -> Option<u32> {
        Some(BOS)
    }

    /// Whether a text begins with it.
    pub fn adds_bos(&self) -> bool {
        true
    }

    /// Size.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }
}
