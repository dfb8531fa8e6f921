//! Templates that would hang or crash the process (denial of service): each ends soon, with an
//! error that gives the reason, on the small stack of test threads.

use std::time::{Duration, Instant};

use incant::profile::{ChatTemplate, Profile};

/// The maximum source length, as seen from outside.
const LONGEST_SOURCE: usize = 128 << 10;

/// Returns the error for a profile whose prefix contains `text`; empty if it is valid.
fn in_a_profile(text: &str) -> String {
    let source = format!(
        "+++\nname = \"own\"\ntitle = \"Own\"\ndescription = \"A user's\"\nlanguage = \"en\"\n\
         shots = 0\nversion = 1\nmarkers = [\"Q:\"]\n+++\n\
         {{% block prefix %}}\n{text}\n{{% endblock %}}\n{{% block turns %}}\n\
         {{% for m in messages %}}\nQ: {{{{ m.content }}}}\n{{% endfor %}}\n\
         Q:\n{{% endblock %}}\n"
    );
    let parsed = Profile::parse("own.jinja", &source);
    parsed.map_or_else(|error| error.to_string(), |_| String::new())
}

/// Returns the error for a chat template; empty if it is valid.
fn in_a_chat_template(text: &str) -> String {
    let parsed = ChatTemplate::new(text, None, None);
    parsed.map_or_else(|error| error.to_string(), |_| String::new())
}

/// Asserts that both errors contain `expected`.
fn both(text: &str, expected: &str) {
    let beginning: String = text.chars().take(80).collect();
    for said in [in_a_profile, in_a_chat_template] {
        let began = Instant::now();
        let error = said(text);
        assert!(error.contains(expected), "{beginning}: {error:?}");
        assert!(!error.contains('\n'), "{beginning}: {error:?}");
        // It takes some tenths of a second on an idle machine.
        let took = began.elapsed();
        assert!(took < Duration::from_secs(20), "{beginning}: {took:?}");
    }
}

/// Repeats `piece` as often as fits in a source.
fn many(piece: &str) -> String {
    piece.repeat((LONGEST_SOURCE - 1000) / piece.len())
}

#[test]
fn no_other_file_can_be_reached() {
    both("{% include \"/etc/hosts\" %}", "/etc/hosts");
    both("{% extends \"/etc/hosts\" %}", "/etc/hosts");
    both("{% import \"urial.jinja\" as other %}", "urial.jinja");
    both("{% from \"../urial.jinja\" import x %}", "../urial.jinja");
}

#[test]
fn what_never_ends_runs_out_of_fuel() {
    both(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "out of fuel",
    );
}

#[test]
fn a_huge_range_is_refused() {
    both("{{ range(1000000000000) | list }}", "too many elements");
    both(
        "{% for a in range(0, 9999999999, 2) %}{% endfor %}",
        "too many elements",
    );
}

#[test]
fn what_calls_itself_is_stopped() {
    let limit = "recursion limit exceeded";
    both(
        "{% macro again(n) %}{{ again(n) }}{% endmacro %}{{ again(1) }}",
        limit,
    );
    both(
        "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        limit,
    );
    both("{% block again %}{{ self.again() }}{% endblock %}", limit);
}

#[test]
fn deep_nesting_is_refused() {
    let limit = "maximum recursion limits";
    both(&many("{% if true %}"), limit);
    both(&format!("{{{{ {} }}}}", many("(")), limit);
    both(&format!("{{{{ {} }}}}", many("[")), limit);
}

/// The depth of these chains is not limited, but the stack suffices for as many as a source can
/// hold, or fuel allows.
#[test]
fn long_chains_do_not_overflow_the_stack() {
    both(&format!("{{{{ {}true }}}}", many("not ")), "");
    both(&format!("{{{{ {}1 }}}}", many("-")), "");
    both(&format!("{{{{ 1{} }}}}", many("+1")), "");
    both(&format!("{{{{ 1{} }}}}", many("|int")), "");
    both(
        &format!("{{% if 0 %}}{}{{% endif %}}", many("{%elif 0%}")),
        "",
    );
    both(&format!("{{% set x = 1 %}}{}", many("{%set x=[x]%}")), "");
    let endless = "{% set ns = namespace(x=[]) %}{% for a in range(99999) %}\
                   {% for b in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
    both(endless, "out of fuel");
}

#[test]
fn huge_output_is_refused() {
    let text = "0123456789abcdef".repeat(64);
    let huge = &format!("{{% for a in range(99999) %}}{text}{{% endfor %}}");
    both(huge, "the text is longer than 16777216 bytes");
    let outside = format!("{{% endblock %}}{huge}{{% block more %}}");
    assert!(in_a_profile(&outside).contains("longer than"));
}

#[test]
fn a_source_that_is_too_long_is_refused_unread() {
    let error = "more than the 131072 that a template may have";
    both(&"x".repeat(LONGEST_SOURCE + 1), error);
    assert_eq!(in_a_chat_template(&"x".repeat(LONGEST_SOURCE)), "");
}
