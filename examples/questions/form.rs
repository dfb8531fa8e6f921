//! Detects the form of an answer: lists, code, and the headers of turns.

/// Returns whether a line is a list item: `- a`, `* a`, `• a`, `・a`, `1. a`, `2) a`, `３．a`.
pub(crate) fn is_list_item(line: &str) -> bool {
    let line = line.trim_start().trim_start_matches("**");
    let after_number = line.trim_start_matches(char::is_numeric);
    if after_number.len() < line.len() {
        return after_number.starts_with(['.', ')', '．', '）', '、', ':']);
    }
    ["- ", "* ", "• ", "・", "+ "]
        .iter()
        .any(|bullet| line.starts_with(bullet))
}

/// Returns whether the answer has a closed fence or an indented line.
pub(crate) fn has_code(answer: &str) -> bool {
    let fences = answer
        .lines()
        .filter(|line| line.trim_start().starts_with("```"))
        .count();
    fences >= 2 || answer.lines().any(|line| line.starts_with("    "))
}

/// Returns whether a line of the answer is the header of a turn, in any of the forms that prompts
/// use.
pub(crate) fn leaks(answer: &str) -> bool {
    const HEADERS: &[&str] = &[
        "query",
        "answer",
        "instruction",
        "user",
        "assistant",
        "human",
        "question",
        "system",
        "質問",
        "回答",
        "指示",
        "ユーザー",
        "アシスタント",
    ];
    answer.contains("<|")
        || answer.contains("<start_of_turn>")
        || answer.contains("<end_of_turn>")
        || answer.lines().any(|line| {
            let line = line.trim().to_lowercase();
            let marked = line.trim_start_matches(['#', '<', '/', '*', '[', ' ']);
            let is_marked = marked.len() < line.len();
            HEADERS.iter().any(|header| {
                marked.strip_prefix(header).is_some_and(|rest| {
                    let colon = rest.starts_with([':', '：']);
                    colon || (is_marked && rest.trim_matches(['>', '*', ']', '#']).is_empty())
                })
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_turns_are_leaks_and_headings_are_not() {
        for leak in [
            "Fine.\n\n# Query:\nNext",
            "Fine.\n## Answer\nNext",
            "Fine.\nUser: next",
            "Fine.\n<assistant>",
            "Fine.\n**Answer:** yes",
            "はい。\n# 質問:\n次",
            "Fine.<|im_end|>",
        ] {
            assert!(leaks(leak), "{leak:?}");
        }
        for fine in [
            "# Usage\nRun it.",
            "A question: why?",
            "The answer: it depends.",
            "# Answering questions\n- Users like it",
            "`# Query:` is a marker.",
        ] {
            assert!(!leaks(fine), "{fine:?}");
        }
    }
}
