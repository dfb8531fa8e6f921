//! Syntax highlighting: the grammar gives the scopes of a piece of code, and a small table maps
//! them to the terminal's own colours.

use std::sync::OnceLock;

use ratatui::style::{Color, Style};
use syntect::parsing::{ParseState, Scope, ScopeStack, SyntaxSet};

/// The colours of scopes; the first match counts.
const COLOURS: [(&str, TokenStyle); 15] = [
    ("comment", TokenStyle::Dim),
    ("string", TokenStyle::Colour(Color::Green)),
    ("constant", TokenStyle::Colour(Color::Yellow)),
    ("keyword.operator", TokenStyle::Plain),
    ("keyword", TokenStyle::Colour(Color::Magenta)),
    ("storage", TokenStyle::Colour(Color::Magenta)),
    ("entity.name.function", TokenStyle::Colour(Color::LightBlue)),
    ("support.function", TokenStyle::Colour(Color::LightBlue)),
    ("entity.name.tag", TokenStyle::Colour(Color::LightBlue)),
    ("entity.name", TokenStyle::Colour(Color::Cyan)),
    (
        "entity.other.attribute-name",
        TokenStyle::Colour(Color::Cyan),
    ),
    ("support.type", TokenStyle::Colour(Color::Cyan)),
    ("markup.inserted", TokenStyle::Colour(Color::Green)),
    ("markup.deleted", TokenStyle::Colour(Color::Red)),
    ("variable.function", TokenStyle::Colour(Color::LightBlue)),
];

#[derive(Clone, Copy)]
enum TokenStyle {
    Plain,
    Dim,
    Colour(Color),
}

struct Highlighter {
    syntaxes: SyntaxSet,
    colours: Vec<(Scope, Style)>,
}

/// Loads the grammars, which takes some time, so that the first code block does not have to
/// wait for it.
pub fn warm_up() {
    highlighter();
}

fn highlighter() -> &'static Highlighter {
    static HIGHLIGHTER: OnceLock<Highlighter> = OnceLock::new();
    HIGHLIGHTER.get_or_init(|| {
        let colours = COLOURS.iter().filter_map(|(scope, look)| {
            let style = match look {
                TokenStyle::Plain => Style::new(),
                TokenStyle::Dim => Style::new().dim().italic(),
                TokenStyle::Colour(colour) => Style::new().fg(*colour),
            };
            Some((Scope::new(scope).ok()?, style))
        });
        Highlighter {
            syntaxes: two_face::syntax::extra_newlines(),
            colours: colours.collect(),
        }
    })
}

impl Highlighter {
    fn style(&self, stack: &ScopeStack) -> Style {
        let innermost = stack.scopes.iter().rev();
        let mut looks = innermost.filter_map(|scope| {
            let mut colours = self.colours.iter();
            colours.find(|(prefix, _)| prefix.is_prefix_of(*scope))
        });
        looks.next().map_or(Style::new(), |(_, style)| *style)
    }
}

/// The styled lines of a text in a language; plain if the language is unknown, and from the
/// first line that cannot be parsed.
pub(super) fn lines(language: &str, code: &str) -> Vec<Vec<(String, Style)>> {
    let plain = |line: &str| vec![(line.to_owned(), Style::new())];
    if language.is_empty() {
        return code.split('\n').map(plain).collect();
    }
    let highlighter = highlighter();
    let Some(syntax) = highlighter.syntaxes.find_syntax_by_token(language) else {
        return code.split('\n').map(plain).collect();
    };
    let mut state = ParseState::new(syntax);
    let mut stack = ScopeStack::new();
    let coloured = |line: &str| {
        let with_end = format!("{line}\n");
        let Ok(operations) = state.parse_line(&with_end, &highlighter.syntaxes) else {
            return plain(line);
        };
        let mut spans = Vec::new();
        let mut from = 0;
        for (to, operation) in operations {
            let to = to.min(line.len());
            if to > from {
                spans.push((line[from..to].to_owned(), highlighter.style(&stack)));
                from = to;
            }
            if stack.apply(&operation).is_err() {
                break;
            }
        }
        spans.push((line[from..].to_owned(), highlighter.style(&stack)));
        spans
    };
    code.split('\n').map(coloured).collect()
}
