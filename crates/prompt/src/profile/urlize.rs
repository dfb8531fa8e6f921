//! Jinja2's filter `urlize`: addresses in a text become links.

use std::fmt::Write as _;
use std::sync::LazyLock;

use minijinja::{Error, Value};
use regex::Regex;

use super::jinja::{escape_text, escaped};
use super::step_limits;
use super::string_methods::{arguments, integer, invalid, string};

/// `jinja2.utils._http_re`.
static WEB: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?ix)^(?:
            (?:https?://|www\.)(?:(?:[\w%-]+\.)+)?(?:[a-z]{2,63}|xn--[\w%]{2,59})
            |(?:[\w%-]{2,63}\.)+(?:com|net|int|edu|gov|org|info|mil)
            |(?:https?://)(?:
                (?:\d{1,3})(?:\.\d{1,3}){3}
                |\[(?:[\da-f]{0,4}:){2}(?:[\da-f]{0,4}:?){1,6}\]
            )
        )(?::\d{1,5})?(?:[/?\#]\S*)?$",
    )
    .expect("a constant that tests use")
});

/// `jinja2.utils._email_re`.
static MAIL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\S+@\w[\w.-]*\.\w+$").expect("a constant that tests use"));

/// The name of a scheme with its colon and slashes (`jinja2.filters._uri_scheme_re`).
static SCHEME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[\w.+-]{2,}:/{0,2}$").expect("a constant that tests use"));

/// Jinja2's `urlize(trim_url_limit=None, nofollow=False, target=None, rel=None,
/// extra_schemes=None)`.
pub(super) fn urlize(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let names = [
        "trim_url_limit",
        "nofollow",
        "target",
        "rel",
        "extra_schemes",
    ];
    let [limit, nofollow, target, rel, schemes] = arguments(names, args)?;
    let given = |argument: Option<Value>| argument.filter(|value| value.is_true());
    let limit = match limit.filter(|limit| !limit.is_none()) {
        Some(limit) => Some(usize::try_from(integer(&limit)?).unwrap_or(0)),
        None => None,
    };
    let rel = given(rel);
    let mut rels: Vec<&str> = match &rel {
        Some(rel) => string(rel)?.split_whitespace().collect(),
        None => Vec::new(),
    };
    rels.push("noopener");
    if given(nofollow).is_some() {
        rels.push("nofollow");
    }
    rels.sort_unstable();
    rels.dedup();
    let rels = rels.join(" ");
    let mut attributes = format!(" rel=\"{}\"", escape_text(&rels));
    if let Some(target) = given(target) {
        attributes += &format!(" target=\"{}\"", escaped(&target));
    }
    let mut extra = Vec::new();
    if let Some(schemes) = given(schemes) {
        for scheme in schemes.try_iter()? {
            let scheme = string(&scheme)?.to_owned();
            if !SCHEME.is_match(&scheme) {
                return Err(invalid(format!("urlize: {scheme:?} is not a URI scheme")));
            }
            extra.push(scheme);
        }
    }
    let links = Links {
        attributes,
        limit,
        extra,
    };
    let text = escaped(value);
    let mut linked = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        links.write_word(&rest[..end], &mut linked);
        rest = &rest[end..];
        let space = rest.len() - rest.trim_start().len();
        linked.push_str(&rest[..space]);
        rest = &rest[space..];
        if linked.len() > step_limits::MAX_OUTPUT_BYTES {
            return Err(invalid("urlize: the output is too long"));
        }
    }
    Ok(Value::from(linked))
}

/// The format of links.
struct Links {
    attributes: String,
    /// Maximum number of characters of an address to display.
    limit: Option<usize>,
    /// Additional URI schemes.
    extra: Vec<String>,
}

impl Links {
    /// Writes a word of an escaped text, as a link if it is an address.
    fn write_word(&self, word: &str, out: &mut String) {
        let mut middle = word;
        while let Some(rest) = strip_any(middle, &["(", "<", "&lt;"]) {
            middle = rest;
        }
        let start = word.len() - middle.len();
        while let Some(rest) = strip_any_end(middle, &[")", ">", ".", ",", "&gt;"]) {
            middle = rest;
        }
        let mut end = start + middle.len();
        // A closing bracket belongs to the address if the address contains the opening one.
        for (open, close) in [("(", ")"), ("<", ">"), ("&lt;", "&gt;")] {
            let opened = word[start..end].matches(open).count();
            if opened <= word[start..end].matches(close).count() {
                continue;
            }
            for _ in 0..opened {
                match word[end..].find(close) {
                    Some(at) => end += at + close.len(),
                    None => break,
                }
            }
        }
        let (head, middle, tail) = (&word[..start], &word[start..end], &word[end..]);
        let Links {
            attributes, extra, ..
        } = self;
        out.push_str(head);
        // Writing to a string cannot fail.
        _ = if WEB.is_match(middle) {
            let has_scheme = middle.starts_with("https://") || middle.starts_with("http://");
            let scheme = if has_scheme { "" } else { "https://" };
            let shown = self.trimmed(middle);
            write!(out, "<a href=\"{scheme}{middle}\"{attributes}>{shown}</a>")
        } else if let Some(address) = middle.strip_prefix("mailto:")
            && MAIL.is_match(address)
        {
            write!(out, "<a href=\"{middle}\">{address}</a>")
        } else if middle.contains('@')
            && !middle.starts_with("www.")
            && !middle.contains(':')
            && MAIL.is_match(middle)
        {
            write!(out, "<a href=\"mailto:{middle}\">{middle}</a>")
        } else if extra
            .iter()
            .any(|scheme| middle != scheme && middle.starts_with(scheme.as_str()))
        {
            write!(out, "<a href=\"{middle}\"{attributes}>{middle}</a>")
        } else {
            write!(out, "{middle}")
        };
        out.push_str(tail);
    }

    /// The displayed form of an address.
    fn trimmed(&self, address: &str) -> String {
        match self.limit {
            Some(limit) if address.chars().count() > limit => {
                let kept: String = address.chars().take(limit).collect();
                format!("{kept}...")
            }
            _ => address.to_owned(),
        }
    }
}

fn strip_any<'a>(text: &'a str, beginnings: &[&str]) -> Option<&'a str> {
    beginnings.iter().find_map(|it| text.strip_prefix(it))
}

fn strip_any_end<'a>(text: &'a str, endings: &[&str]) -> Option<&'a str> {
    endings.iter().find_map(|it| text.strip_suffix(it))
}
