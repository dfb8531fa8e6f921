//! Key bindings. Every key is handled here, including the editor's arrow keys, so that all keys
//! can be rebound and the help screen is complete.

mod keys;

use std::collections::HashMap;
use std::path::Path;
use std::{fs, io};

pub use keys::Key;

/// Why a file of key bindings is invalid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeymapError {
    /// It cannot be read.
    #[error("{0}")]
    File(String),
    /// It is not TOML, or has no table of keys.
    #[error("line {line}: {message}")]
    Syntax {
        /// The line number.
        line: usize,
        /// The problem.
        message: String,
    },
    /// No action has this name.
    #[error("there is no action `{0}`; help lists all")]
    Action(String),
    /// No key has this name.
    #[error("`{key}`, bound to `{action}`, is not a key")]
    Key {
        /// The key as written in the file.
        key: String,
        /// The action it was bound to.
        action: String,
    },
    /// A key has two actions.
    #[error("`{key}` is bound to both `{first}` and `{second}`")]
    Twice {
        /// The key as written in the file.
        key: String,
        /// Its first action.
        first: &'static str,
        /// Its second action.
        second: &'static str,
    },
}

/// The context of an action: a heading of the help screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Anywhere.
    Everywhere,
    /// In a conversation with one arm.
    Chat,
    /// With several arms side by side.
    Compare,
    /// In text fields and lists.
    Writing,
}

impl Group {
    /// All groups, in the order of the help screen.
    pub const ALL: [Group; 4] = [
        Group::Everywhere,
        Group::Chat,
        Group::Compare,
        Group::Writing,
    ];

    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Everywhere => "Everywhere",
            Group::Chat => "Chat",
            Group::Compare => "Compare",
            Group::Writing => "Writing, and lists",
        }
    }
}

/// An action's entry in files and on the help screen.
pub struct Entry {
    /// The action.
    pub action: Action,
    /// Its name in a file of bindings.
    pub name: &'static str,
    /// Its context.
    pub group: Group,
    /// Its description.
    pub help: &'static str,
    /// Its default keys, as files write them.
    pub keys: &'static [&'static str],
}

/// Defines the actions, their names, keys and help in one place.
macro_rules! actions {
    ($($group:ident: $($action:ident $name:literal [$($key:literal)*] $help:literal)*;)*) => {
        /// An action that a key can be bound to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Action {
            $($(#[doc = $help] $action,)*)*
        }

        /// Every action, in the order of the help screen.
        pub const ENTRIES: &[Entry] = &[
            $($(Entry {
                action: Action::$action,
                name: $name,
                group: Group::$group,
                help: $help,
                keys: &[$($key),*],
            },)*)*
        ];
    };
}

actions! {
    Everywhere:
    Help "help" ["f1" "alt-h"] "Show or hide this help"
    SwitchMode "switch-mode" ["f2" "alt-m"] "Go to compare, or back to chat"
    Arms "arms" ["f3" "ctrl-p"] "Choose who answers"
    Sampling "sampling" ["f4" "alt-s"] "Set temperature and other parameters"
    System "system" ["f6" "alt-i"] "Write the system message"
    Sessions "sessions" ["f7" "ctrl-o"] "Search and open a saved session"
    NewSession "new" ["ctrl-n"] "Begin a new session"
    Stop "stop" ["esc"] "Stop the answer, or close a panel"
    Interrupt "interrupt" ["ctrl-c"] "Stop the answer, else clear the input, else quit"
    Mouse "mouse" ["f12" "alt-x"] "Leave the mouse to the terminal, to select text, or take it back"
    Quit "quit" ["ctrl-q"] "Quit";
    Chat:
    Send "send" ["enter"] "Send; in a list, choose"
    Regenerate "regenerate" ["f5" "ctrl-r"] "Answer the last question once more"
    VariantBefore "variant-before" ["alt-,"] "Show the answer before this one to the same question"
    VariantAfter "variant-after" ["alt-."] "Show the answer after this one to the same question"
    Edit "edit" ["alt-e"] "Edit the selected question, else the last one"
    SelectUp "select-up" ["alt-up"] "Select the message above"
    SelectDown "select-down" ["alt-down"] "Select the message below"
    Copy "copy" ["ctrl-y"] "Copy the selected message, else the last answer, as Markdown"
    CopyAll "copy-all" ["alt-y"] "Copy the whole session as Markdown"
    ScrollUp "scroll-up" ["pageup"] "Scroll up"
    ScrollDown "scroll-down" ["pagedown"] "Scroll down"
    ScrollTop "scroll-top" ["ctrl-home"] "Scroll to the beginning"
    ScrollBottom "scroll-bottom" ["ctrl-end"] "Scroll to the end, and follow it";
    Compare:
    Next "next" ["tab"] "Go to the next pane, then to the input; mark an arm in the list"
    Previous "previous" ["backtab"] "Go to the pane before"
    Colours "colours" ["f8" "alt-c"] "Colour tokens by shift, by probability, or not"
    Promote "promote" ["f9" "alt-p"] "Continue the pane's conversation in chat"
    Export "export" ["f10" "ctrl-s"] "Save the comparison as an HTML report";
    Writing:
    Newline "newline" ["alt-enter" "ctrl-j"] "Begin a new line"
    Up "up" ["up"] "Row up, then back in history"
    Down "down" ["down"] "Row down, then forward in history"
    Left "left" ["left" "ctrl-b"] "Left; in a pane, the token before"
    Right "right" ["right" "ctrl-f"] "Right; in a pane, the next token"
    WordLeft "word-left" ["ctrl-left" "alt-b" "alt-left"] "Word left"
    WordRight "word-right" ["ctrl-right" "alt-f" "alt-right"] "Word right"
    LineStart "line-start" ["home" "ctrl-a"] "To the beginning of the line"
    LineEnd "line-end" ["end" "ctrl-e"] "To the end of the line"
    DeleteBack "delete-back" ["backspace" "ctrl-h"] "Delete to the left"
    DeleteForward "delete-forward" ["delete"] "Delete to the right"
    DeleteOrQuit "delete-or-quit" ["ctrl-d"] "Delete to the right; where nothing is written, quit"
    DeleteWord "delete-word" ["ctrl-w" "alt-backspace"] "Delete the word to the left"
    DeleteToStart "delete-to-start" ["ctrl-u"] "Delete to the beginning of the line"
    DeleteToEnd "delete-to-end" ["ctrl-k"] "Delete to the end of the line"
    Guide "guide" ["alt-g"] "In the list of arms, add guidance, or take it away"
    Rename "rename" ["alt-r"] "In the list of sessions, give one a title"
    Delete "delete" ["alt-d"] "In the list of sessions, delete one";
}

/// The actions of keys, and whether the program uses the mouse.
#[derive(Clone, Debug)]
pub struct Keymap {
    keys: HashMap<Key, Action>,
    mouse: bool,
}

impl Default for Keymap {
    fn default() -> Self {
        let bound = ENTRIES.iter().flat_map(|entry| {
            entry.keys.iter().map(|name| {
                let key = Key::parse(name).expect("a test parses all of them");
                (key, entry.action)
            })
        });
        Keymap {
            keys: bound.collect(),
            mouse: true,
        }
    }
}

impl Keymap {
    /// The default keys, changed by a file: `[keys]`, then lines such as `quit = "ctrl-x"` or
    /// `send = ["enter", "ctrl-d"]`. A line replaces an action's keys, and takes them from
    /// other actions. Before `[keys]`, `mouse = false` leaves the mouse to the terminal.
    ///
    /// # Errors
    /// The file does not have this form, names an unknown key or action, or gives a key two
    /// actions.
    pub fn from_toml(text: &str) -> Result<Keymap, KeymapError> {
        let mut map = Keymap::default();
        let file: File = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            KeymapError::Syntax {
                line: text[..start].matches('\n').count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        map.mouse = file.mouse;
        let mut bound: HashMap<Key, &Entry> = HashMap::new();
        for (name, keys) in file.keys {
            let entry = ENTRIES.iter().find(|entry| entry.name == name);
            let entry = entry.ok_or_else(|| KeymapError::Action(name.clone()))?;
            map.keys
                .retain(|key, action| *action != entry.action || bound.contains_key(key));
            for written in keys.into_vec() {
                let key = Key::parse(&written).ok_or_else(|| KeymapError::Key {
                    key: written.clone(),
                    action: name.clone(),
                })?;
                if let Some(first) = bound.insert(key, entry) {
                    return Err(KeymapError::Twice {
                        key: written,
                        first: first.name,
                        second: entry.name,
                    });
                }
                map.keys.insert(key, entry.action);
            }
        }
        Ok(map)
    }

    /// The keys of a file; the default ones if it does not exist.
    ///
    /// # Errors
    /// As for [`Keymap::from_toml`], and if the file cannot be read.
    pub fn read(path: &Path) -> Result<Keymap, KeymapError> {
        match fs::read_to_string(path) {
            Ok(text) => Keymap::from_toml(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Keymap::default()),
            Err(error) => Err(KeymapError::File(error.to_string())),
        }
    }

    /// The action of a key.
    pub fn action(&self, key: Key) -> Option<Action> {
        self.keys.get(&key).copied()
    }

    /// Whether the program captures the mouse when it starts.
    pub fn mouse(&self) -> bool {
        self.mouse
    }

    /// The keys of an action as people read them, such as `F1`; the shortest first.
    pub fn keys(&self, action: Action) -> Vec<String> {
        let bound = self.keys.iter().filter(|(_, does)| **does == action);
        let mut keys: Vec<String> = bound.map(|(key, _)| key.to_string()).collect();
        keys.sort_by_key(|key| (key.chars().count(), key.clone()));
        keys
    }

    /// One key of an action, for the hints at the edge of the screen.
    pub fn hint(&self, action: Action) -> Option<String> {
        self.keys(action).into_iter().next()
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "yes")]
    mouse: bool,
    #[serde(default)]
    keys: std::collections::BTreeMap<String, KeyNames>,
}

fn yes() -> bool {
    true
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum KeyNames {
    One(String),
    Many(Vec<String>),
}

impl KeyNames {
    fn into_vec(self) -> Vec<String> {
        match self {
            KeyNames::One(key) => vec![key],
            KeyNames::Many(keys) => keys,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[test]
    fn no_key_has_two_actions_by_default() {
        let keys = ENTRIES.iter().flat_map(|entry| entry.keys);
        assert_eq!(keys.count(), Keymap::default().keys.len());
    }

    #[test]
    fn names_of_actions_are_unique() {
        let names: std::collections::HashSet<_> = ENTRIES.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), ENTRIES.len());
    }

    #[test]
    fn a_file_replaces_the_keys_of_an_action() {
        let map = Keymap::from_toml("[keys]\nquit = \"ctrl-x\"").unwrap();
        assert_eq!(map.action(key("ctrl-x")), Some(Action::Quit));
        assert_eq!(map.action(key("ctrl-q")), None);
        assert_eq!(map.keys(Action::Quit), ["Ctrl+X"]);
    }

    #[test]
    fn a_file_can_leave_the_mouse_to_the_terminal() {
        assert!(Keymap::default().mouse());
        assert!(!Keymap::from_toml("mouse = false").unwrap().mouse());
    }

    #[test]
    fn a_key_is_taken_from_the_action_that_had_it() {
        let map = Keymap::from_toml("[keys]\nnew = [\"ctrl-o\", \"f12\"]").unwrap();
        assert_eq!(map.action(key("ctrl-o")), Some(Action::NewSession));
        assert_eq!(map.keys(Action::Sessions), ["F7"]);
    }

    #[test]
    fn two_actions_can_swap_their_keys() {
        let map = Keymap::from_toml("[keys]\nsend = \"ctrl-j\"\nnewline = \"enter\"").unwrap();
        assert_eq!(map.action(key("enter")), Some(Action::Newline));
        assert_eq!(map.action(key("ctrl-j")), Some(Action::Send));
    }

    #[test]
    fn a_file_that_is_wrong_says_where() {
        let error = |text| Keymap::from_toml(text).unwrap_err().to_string();
        assert_eq!(
            error("[keys]\nfly = \"f1\""),
            "there is no action `fly`; help lists all"
        );
        assert_eq!(
            error("[keys]\nquit = \"ctrl-\""),
            "`ctrl-`, bound to `quit`, is not a key"
        );
        let syntax = error("[keys]\nquit = ctrl-x");
        assert!(syntax.starts_with("line 2: "), "{syntax}");
        assert_eq!(syntax.lines().count(), 1, "{syntax}");
        assert_eq!(
            error("[keys]\nquit = \"f12\"\nsend = \"f12\""),
            "`f12` is bound to both `quit` and `send`"
        );
    }
}
