//! Snapshots of rendered Markdown.

use super::*;

fn shown(text: &str, width: usize) -> String {
    let mut rendered = Rendered::default();
    rendered.update(text, width);
    let lines = rendered.lines(0..rendered.height());
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

const DOCUMENT: &str = "# Title\n\nSome *text* with `code`, [a link](http://x.y) and 日本語の文章です。\n\n\
    - one\n- two\n  1. inner\n  2. more\n\n> quoted\n> twice\n\n\
    ```rust\nfn main() {}\n```\n\n| a | b |\n|---|---|\n| 1 | two |\n\n---\n\nThe end.";

#[test]
fn every_kind_of_block_is_laid_out() {
    insta::assert_snapshot!(shown(DOCUMENT, 30));
}

#[test]
fn growing_text_is_laid_out_as_if_it_had_come_at_once() {
    let mut growing = Rendered::default();
    for (end, _) in DOCUMENT.char_indices().skip(1) {
        growing.update(&DOCUMENT[..end], 30);
        let mut whole = Rendered::default();
        whole.update(&DOCUMENT[..end], 30);
        let height = whole.height();
        assert_eq!(growing.lines(0..height), whole.lines(0..height), "{end}");
    }
}

#[test]
fn a_window_of_lines_is_a_part_of_all() {
    let mut rendered = Rendered::default();
    rendered.update(DOCUMENT, 30);
    let all = rendered.lines(0..rendered.height());
    for from in 0..all.len() {
        let to = (from + 3).min(all.len());
        assert_eq!(rendered.lines(from..to), all[from..to]);
    }
}

#[test]
fn no_line_is_wider_than_it_may_be() {
    for width in [20, 30, 47] {
        let mut rendered = Rendered::default();
        rendered.update(DOCUMENT, width);
        for line in rendered.lines(0..rendered.height()) {
            assert!(line.width() <= width, "{line}");
        }
    }
}

#[test]
fn code_is_coloured_with_the_terminals_own_colours() {
    let mut rendered = Rendered::default();
    rendered.update("```rust\n// why\nlet x = \"y\";\n```", 40);
    let lines = rendered.lines(0..rendered.height());
    let style = |line: usize, text: &str| {
        let mut spans = lines[line].spans.iter();
        spans
            .find(|span| span.content.contains(text))
            .unwrap()
            .style
    };
    assert_eq!(style(1, "let").fg, Some(Color::Magenta));
    assert_eq!(style(1, "y").fg, Some(Color::Green));
    assert!(
        style(0, "why")
            .add_modifier
            .contains(ratatui::style::Modifier::DIM)
    );
}
