//! Keys: as terminals send them, as configuration files name them, and as people read them.

use std::fmt;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// A key with its modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    code: KeyCode,
    modifiers: KeyModifiers,
}

const NAMED: [(&str, &str, KeyCode); 16] = [
    ("enter", "Enter", KeyCode::Enter),
    ("esc", "Esc", KeyCode::Esc),
    ("tab", "Tab", KeyCode::Tab),
    ("backtab", "Shift+Tab", KeyCode::BackTab),
    ("backspace", "Backspace", KeyCode::Backspace),
    ("delete", "Del", KeyCode::Delete),
    ("insert", "Ins", KeyCode::Insert),
    ("space", "Space", KeyCode::Char(' ')),
    ("up", "↑", KeyCode::Up),
    ("down", "↓", KeyCode::Down),
    ("left", "←", KeyCode::Left),
    ("right", "→", KeyCode::Right),
    ("home", "Home", KeyCode::Home),
    ("end", "End", KeyCode::End),
    ("pageup", "PgUp", KeyCode::PageUp),
    ("pagedown", "PgDn", KeyCode::PageDown),
];

const MODIFIERS: [(&str, &str, KeyModifiers); 3] = [
    ("ctrl-", "Ctrl+", KeyModifiers::CONTROL),
    ("alt-", "Alt+", KeyModifiers::ALT),
    ("shift-", "Shift+", KeyModifiers::SHIFT),
];

impl Key {
    /// Parses a key's name in a configuration file, such as `ctrl-alt-x`, `f5` or `pageup`.
    pub fn parse(text: &str) -> Option<Key> {
        let lower = text.to_lowercase();
        let mut rest = lower.as_str();
        let mut modifiers = KeyModifiers::NONE;
        while let Some((stripped, modifier)) = MODIFIERS
            .iter()
            .find_map(|(name, _, modifier)| Some((rest.strip_prefix(name)?, *modifier)))
        {
            modifiers |= modifier;
            rest = stripped;
        }
        let named = NAMED.iter().find(|(name, _, _)| *name == rest);
        let function = || rest.strip_prefix('f')?.parse().ok().map(KeyCode::F);
        let mut characters = rest.chars();
        let code = match (named, characters.next(), characters.next()) {
            (Some((_, _, code)), _, _) => *code,
            (None, Some(only), None) => KeyCode::Char(only),
            _ => function()?,
        };
        Some(Key::new(code, modifiers))
    }

    fn new(code: KeyCode, modifiers: KeyModifiers) -> Key {
        // Terminals differ in whether they report Shift if the character implies it.
        let silent = match code {
            KeyCode::Char(_) | KeyCode::BackTab => KeyModifiers::SHIFT,
            _ => KeyModifiers::NONE,
        };
        let code = match code {
            KeyCode::Char(character) if !(modifiers - silent).is_empty() => {
                KeyCode::Char(character.to_ascii_lowercase())
            }
            code => code,
        };
        Key {
            code,
            modifiers: modifiers - silent,
        }
    }

    /// The character that the key types, if it is a plain one.
    pub fn character(self) -> Option<char> {
        match self.code {
            KeyCode::Char(character) if self.modifiers.is_empty() => Some(character),
            _ => None,
        }
    }
}

impl From<KeyEvent> for Key {
    fn from(event: KeyEvent) -> Key {
        Key::new(event.code, event.modifiers)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (_, shown, modifier) in MODIFIERS {
            if self.modifiers.contains(modifier) {
                f.write_str(shown)?;
            }
        }
        if let Some((_, shown, _)) = NAMED.iter().find(|(_, _, code)| *code == self.code) {
            return f.write_str(shown);
        }
        match self.code {
            KeyCode::Char(character) => write!(f, "{}", character.to_uppercase()),
            KeyCode::F(number) => write!(f, "F{number}"),
            other => write!(f, "{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_as_people_say_it() {
        let shown = |text| Key::parse(text).map(|key| key.to_string());
        assert_eq!(shown("ctrl-p").as_deref(), Some("Ctrl+P"));
        assert_eq!(shown("alt-enter").as_deref(), Some("Alt+Enter"));
        assert_eq!(shown("F11").as_deref(), Some("F11"));
        assert_eq!(shown("backtab").as_deref(), Some("Shift+Tab"));
        assert_eq!(shown("ctrl-"), None);
        assert_eq!(shown("pagesideways"), None);
    }

    #[test]
    fn capital_letters_are_written_and_shift_does_not_matter() {
        let event = KeyEvent::new(KeyCode::Char('A'), KeyModifiers::SHIFT);
        assert_eq!(Key::from(event).character(), Some('A'));
        let tab = KeyEvent::new(KeyCode::BackTab, KeyModifiers::SHIFT);
        assert_eq!(Some(Key::from(tab)), Key::parse("backtab"));
    }
}
