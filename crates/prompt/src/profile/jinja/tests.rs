use minijinja::context;

use super::*;
use crate::profile::{percent, string_methods};

const TEXT: &str = "The quick brown fox jumped over the well-known lazy-dog -- it's a state-of-the-art, e-mail--ready, supercalifragilisticexpialidocious jump!";

fn render(expression: &str) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_unknown_method_callback(string_methods::call);
    environment.add_function(percent::FUNCTION, percent::percent);
    add(&mut environment);
    environment.render_str(
        &format!("{{{{ {expression} }}}}"),
        context! { text => TEXT },
    )
}

/// The results of Jinja2 3.1.6 on CPython 3.
#[test]
fn filters_tests_and_functions_do_what_they_do_in_jinja2() {
    for (expression, expected) in [
        (
            "text|wordwrap(20)",
            "The quick brown fox\njumped over the\nwell-known lazy-dog\n-- it's a state-of-\nthe-art, e-mail--\nready, supercalifrag\nilisticexpialidociou\ns jump!",
        ),
        (
            "text|wordwrap",
            "The quick brown fox jumped over the well-known lazy-dog -- it's a state-of-the-\nart, e-mail--ready, supercalifragilisticexpialidocious jump!",
        ),
        (
            "text|wordwrap(12, false)",
            "The quick\nbrown fox\njumped over\nthe well-\nknown lazy-\ndog -- it's\na state-of-\nthe-art,\ne-mail--\nready,\nsupercalifragilisticexpialidocious\njump!",
        ),
        (
            "text|wordwrap(12, true, '|')",
            "The quick|brown fox|jumped over|the well-|known lazy-|dog -- it's|a state-of-|the-art,|e-mail--|ready, super|califragilis|ticexpialido|cious jump!",
        ),
        (
            "text|wordwrap(width=10, break_on_hyphens=false)",
            "The quick\nbrown fox\njumped\nover the\nwell-known\nlazy-dog\n-- it's a \nstate-of-t\nhe-art, e-\nmail--read\ny, superca\nlifragilis\nticexpiali\ndocious\njump!",
        ),
        (
            "text|wordwrap(1)",
            "T\nh\ne\nq\nu\ni\nc\nk\nb\nr\no\nw\nn\nf\no\nx\nj\nu\nm\np\ne\nd\no\nv\ne\nr\nt\nh\ne\nw\ne\nl\nl\n-\nk\nn\no\nw\nn\nl\na\nz\ny\n-\nd\no\ng\n-\n-\ni\nt\n'\ns\na\ns\nt\na\nt\ne\n-\no\nf\n-\nt\nh\ne\n-\na\nr\nt\n,\ne\n-\nm\na\ni\nl\n-\n-\nr\ne\na\nd\ny\n,\ns\nu\np\ne\nr\nc\na\nl\ni\nf\nr\na\ng\ni\nl\ni\ns\nt\ni\nc\ne\nx\np\ni\na\nl\ni\nd\no\nc\ni\no\nu\ns\nj\nu\nm\np\n!",
        ),
        (
            "text|wordwrap(7, break_long_words=false, break_on_hyphens=false)",
            "The\nquick\nbrown\nfox\njumped\nover\nthe\nwell-known\nlazy-dog\n-- it's\na\nstate-of-the-art,\ne-mail--ready,\nsupercalifragilisticexpialidocious\njump!",
        ),
        (
            "'  two  spaces \\n\\n  and a break\\r\\nhere\\n'|wordwrap(8)",
            "  two\nspaces\n\n  and a\nbreak\nhere",
        ),
        ("''|wordwrap(5)", ""),
        ("'\\n'|wordwrap(5)", ""),
        (
            "'日本語の長い文章です と 続き'|wordwrap(4)",
            "日本語の\n長い文章\nです と\n続き",
        ),
        (
            "'a-b-c-d-e f--g --h i-- 1-2-3 ab-cd-ef'|wordwrap(3)",
            "a-\nb-\nc-\nd-e\nf--\ng\n--h\ni--\n1-\n2-3\nab-\ncd-\nef",
        ),
        ("'---- a---b'|wordwrap(4)", "----\na---\nb"),
        (
            "'very-long-hyphenated-words'|wordwrap(9)",
            "very-\nlong-hyph\nenated-\nwords",
        ),
        ("'x\\x1dy\\u2028z'|wordwrap(9)", "x\ny\nz"),
        (
            "'aaa bbbb'|wordwrap(3, wrapstring='<br>')",
            "aaa<br>bbb<br>b",
        ),
        (
            "'a b/c?d=e&f~g_h.i-j+é日'|urlencode",
            "a%20b/c%3Fd%3De%26f~g_h.i-j%2B%C3%A9%E6%97%A5",
        ),
        (
            "{'a b': '1/2', 'c': none, 'd': 3, 'é': '~+'}|urlencode",
            "a+b=1%2F2&c=None&d=3&%C3%A9=~%2B",
        ),
        ("[('a', 1), ('b c', '&')]|urlencode", "a=1&b+c=%26"),
        ("17|urlencode", "17"),
        ("''|urlencode", ""),
        ("none|urlencode", "None"),
        ("1.5|urlencode", "1.5"),
        ("true|urlencode", "True"),
        (
            "{'class': 'my list', 'missing': none, 'id': 'list-42', 'x': missing}|xmlattr",
            " class=\"my list\" id=\"list-42\"",
        ),
        (
            "{'a': '<\"&\\'>'}|xmlattr",
            " a=\"&lt;&#34;&amp;&#39;&gt;\"",
        ),
        ("{'a': 1}|xmlattr(false)", "a=\"1\""),
        ("{'a': 1}|xmlattr(autospace=false)", "a=\"1\""),
        ("{}|xmlattr", ""),
        ("{'a': none}|xmlattr", ""),
        ("{'a': true, 'b': [1]}|xmlattr", " a=\"True\" b=\"[1]\""),
        ("{'a': '<b>'|safe}|xmlattr", " a=\"<b>\""),
        (
            "'<a href=\"x\">&\\'</a>'|escape",
            "&lt;a href=&#34;x&#34;&gt;&amp;&#39;&lt;/a&gt;",
        ),
        ("'<b>'|safe|escape", "<b>"),
        ("'<b>'|safe|forceescape", "&lt;b&gt;"),
        ("'<'|e|e", "&lt;"),
        ("'<'|e|forceescape", "&amp;lt;"),
        ("none|escape", "None"),
        ("5|forceescape", "5"),
        ("missing|e", ""),
        (
            "'see https://example.org/a?b=c&d=e, or www.example.com.'|urlize",
            "see <a href=\"https://example.org/a?b=c&amp;d=e\" rel=\"noopener\">https://example.org/a?b=c&amp;d=e</a>, or <a href=\"https://www.example.com\" rel=\"noopener\">www.example.com</a>.",
        ),
        (
            "'(https://en.wikipedia.org/wiki/Rust_(language))'|urlize",
            "(<a href=\"https://en.wikipedia.org/wiki/Rust_(language)\" rel=\"noopener\">https://en.wikipedia.org/wiki/Rust_(language)</a>)",
        ),
        (
            "'mail me@example.org or mailto:you@example.org <http://a.example.org>'|urlize",
            "mail <a href=\"mailto:me@example.org\">me@example.org</a> or <a href=\"mailto:you@example.org\">you@example.org</a> &lt;<a href=\"http://a.example.org\" rel=\"noopener\">http://a.example.org</a>&gt;",
        ),
        (
            "'https://example.org/a/long/path'|urlize(15)",
            "<a href=\"https://example.org/a/long/path\" rel=\"noopener\">https://example...</a>",
        ),
        (
            "'example.org example.dev'|urlize(nofollow=true)",
            "<a href=\"https://example.org\" rel=\"nofollow noopener\">example.org</a> example.dev",
        ),
        (
            "'http://example.org'|urlize(target='_blank', rel='me nofollow')",
            "<a href=\"http://example.org\" rel=\"me nofollow noopener\" target=\"_blank\">http://example.org</a>",
        ),
        (
            "'ftp://x.org tel:123 tel:'|urlize(extra_schemes=['ftp://', 'tel:'])",
            "<a href=\"ftp://x.org\" rel=\"noopener\">ftp://x.org</a> <a href=\"tel:123\" rel=\"noopener\">tel:123</a> tel:",
        ),
        (
            "'http://127.0.0.1:80/x http://[::1]/ 1.2.3.4 http://localhost'|urlize",
            "<a href=\"http://127.0.0.1:80/x\" rel=\"noopener\">http://127.0.0.1:80/x</a> <a href=\"http://[::1]/\" rel=\"noopener\">http://[::1]/</a> 1.2.3.4 <a href=\"http://localhost\" rel=\"noopener\">http://localhost</a>",
        ),
        (
            "'a  b\\n\\tc www.x.org'|urlize",
            "a  b\n\tc <a href=\"https://www.x.org\" rel=\"noopener\">www.x.org</a>",
        ),
        (
            "'((www.a.org)) www.a.org/(b)c)'|urlize",
            "((<a href=\"https://www.a.org\" rel=\"noopener\">www.a.org</a>)) <a href=\"https://www.a.org/(b)c\" rel=\"noopener\">www.a.org/(b)c</a>)",
        ),
        ("''|urlize", ""),
        (
            "'HTTP://EXAMPLE.ORG WWW.Example.Com'|urlize",
            "<a href=\"https://HTTP://EXAMPLE.ORG\" rel=\"noopener\">HTTP://EXAMPLE.ORG</a> <a href=\"https://WWW.Example.Com\" rel=\"noopener\">WWW.Example.Com</a>",
        ),
        ("'&lt; a@b www.@x.org'|urlize", "&amp;lt; a@b www.@x.org"),
        ("range is callable", "True"),
        ("'a' is callable", "False"),
        ("5 is callable", "False"),
        ("none is callable", "False"),
        ("[1] is callable", "False"),
        ("{} is callable", "False"),
        ("namespace(a=1) is callable", "False"),
        ("joiner is callable", "True"),
        ("missing is callable", "True"),
        ("[4]|random", "4"),
        ("'x'|random", "x"),
        ("lipsum(0)", ""),
        ("lipsum(3, html=false).split('\\n\\n')|length", "3"),
        ("lipsum(n=2).split('\\n')|length", "2"),
        ("lipsum(1, true, 5, 6).split(' ')|length", "5"),
        ("lipsum(1)[:3] ~ lipsum(1)[-5:]", "<p>.</p>"),
        ("lipsum(1, false) is lower", "False"),
        ("'x y z'|truncate(4, true, '', 0)", "x y "),
    ] {
        let found = render(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        assert_eq!(found, expected, "{expression}");
    }
}

#[test]
fn what_jinja2_refuses_is_refused() {
    for expression in [
        "{'a b': 1}|xmlattr",
        "{'a=': 1}|xmlattr",
        "{'a>b': 1}|xmlattr",
        "{'a/b': 1}|xmlattr",
        "'a'|xmlattr",
        "'a'|wordwrap(0)",
        "'a'|wordwrap(-1)",
        "'x'|urlize(extra_schemes=['x'])",
        "[1]|urlencode",
        "lipsum(1, true, 9, 9)",
        "lipsum(1000000)",
    ] {
        assert!(render(expression).is_err(), "{expression}");
    }
}

/// Checks that all built-in filters, tests and functions of Jinja2 3.1 exist.
#[test]
fn nothing_of_jinja2_is_missing() {
    let filters = [
        "abs",
        "attr",
        "batch",
        "capitalize",
        "center",
        "count",
        "d",
        "default",
        "dictsort",
        "e",
        "escape",
        "filesizeformat",
        "first",
        "float",
        "forceescape",
        "format",
        "groupby",
        "indent",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "pprint",
        "random",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "round",
        "safe",
        "select",
        "selectattr",
        "slice",
        "sort",
        "string",
        "striptags",
        "sum",
        "title",
        "tojson",
        "trim",
        "truncate",
        "unique",
        "upper",
        "urlencode",
        "urlize",
        "wordcount",
        "wordwrap",
        "xmlattr",
    ];
    let tests = [
        "!=",
        "<",
        "<=",
        "==",
        ">",
        ">=",
        "boolean",
        "callable",
        "defined",
        "divisibleby",
        "eq",
        "equalto",
        "escaped",
        "even",
        "false",
        "filter",
        "float",
        "ge",
        "greaterthan",
        "gt",
        "in",
        "integer",
        "iterable",
        "le",
        "lessthan",
        "lower",
        "lt",
        "mapping",
        "ne",
        "none",
        "number",
        "odd",
        "sameas",
        "sequence",
        "string",
        "test",
        "true",
        "undefined",
        "upper",
    ];
    let functions = ["cycler", "dict", "joiner", "lipsum", "namespace", "range"];
    let mut environment = Environment::new();
    add(&mut environment);
    for name in filters {
        let source = format!("{{{{ {name:?} is filter }}}}");
        assert_eq!(
            environment.render_str(&source, ()).unwrap(),
            "True",
            "{name}"
        );
    }
    for name in tests {
        let source = format!("{{{{ {name:?} is test }}}}");
        assert_eq!(
            environment.render_str(&source, ()).unwrap(),
            "True",
            "{name}"
        );
    }
    for name in functions {
        let source = format!("{{{{ {name} is defined }}}}");
        assert_eq!(
            environment.render_str(&source, ()).unwrap(),
            "True",
            "{name}"
        );
    }
}
