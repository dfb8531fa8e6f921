//! Recognises markup among the pieces that a vocabulary declares as text.
//!
//! Many files declare the tokens that structure a prompt as text (`<|im_start|>`,
//! `<start_of_image>`, `<think>`), as well as line breaks, runs of spaces and HTML tags, which
//! a user's text may legitimately become.

/// The elements of HTML, obsolete ones included, and some of SVG and MathML, sorted.
const HTML: &[&str] = &[
    "a",
    "abbr",
    "acronym",
    "address",
    "applet",
    "area",
    "article",
    "aside",
    "audio",
    "b",
    "base",
    "bdi",
    "bdo",
    "big",
    "blockquote",
    "body",
    "br",
    "button",
    "canvas",
    "caption",
    "center",
    "circle",
    "cite",
    "code",
    "col",
    "colgroup",
    "data",
    "datalist",
    "dd",
    "del",
    "details",
    "dfn",
    "dialog",
    "dir",
    "div",
    "dl",
    "dt",
    "em",
    "embed",
    "fieldset",
    "figcaption",
    "figure",
    "font",
    "footer",
    "form",
    "frame",
    "frameset",
    "g",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hgroup",
    "hr",
    "html",
    "i",
    "iframe",
    "img",
    "input",
    "ins",
    "kbd",
    "label",
    "legend",
    "li",
    "link",
    "main",
    "map",
    "mark",
    "math",
    "menu",
    "meta",
    "meter",
    "nav",
    "noframes",
    "noscript",
    "object",
    "ol",
    "optgroup",
    "option",
    "output",
    "p",
    "param",
    "path",
    "picture",
    "pre",
    "progress",
    "q",
    "rect",
    "rp",
    "rt",
    "ruby",
    "s",
    "samp",
    "script",
    "search",
    "section",
    "select",
    "slot",
    "small",
    "source",
    "span",
    "strike",
    "strong",
    "style",
    "sub",
    "summary",
    "sup",
    "svg",
    "table",
    "tbody",
    "td",
    "template",
    "text",
    "textarea",
    "tfoot",
    "th",
    "thead",
    "time",
    "title",
    "tr",
    "track",
    "tt",
    "u",
    "ul",
    "var",
    "video",
    "wbr",
];

/// Whether a piece is words in brackets and not an HTML tag.
pub(super) fn is_markup(piece: &str) -> bool {
    let piece = piece.trim_matches(|c: char| c == '\u{2581}' || c.is_whitespace());
    let brackets = [('<', '>'), ('[', ']'), ('{', '}'), ('\u{ff5f}', '\u{ff60}')];
    let mut insides = brackets
        .iter()
        .filter_map(|&(open, close)| piece.strip_prefix(open)?.strip_suffix(close));
    insides.next().is_some_and(|inside| {
        let name = inside
            .trim_start_matches('/')
            .trim_end_matches('/')
            .trim_end();
        inside.contains(char::is_alphanumeric) && HTML.binary_search(&name).is_err()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_brackets_are_markup_unless_html_has_them() {
        assert!(HTML.is_sorted());
        for markup in [
            "<|im_start|>",
            "<start_of_image>",
            "[multimodal]",
            "<think>",
            "</think>",
            "[INST]",
            "<<SYS>>",
            "<\u{ff5c}User\u{ff5c}>",
            "\u{2581}<PRE>",
            "<bbox>",
        ] {
            assert!(is_markup(markup), "{markup}");
        }
        for text in [
            "<table>",
            "</td>",
            "<br/>",
            "<br />",
            "<h1>",
            "\n\n",
            "\u{2581}\u{2581}",
            "<>",
            "[",
            "[]",
            "<|",
            "->",
            "hello",
            "",
        ] {
            assert!(!is_markup(text), "{text}");
        }
    }
}
