//! The chat template in a model's GGUF: Jinja as transformers runs it.

use std::borrow::Cow;

use jiff::Zoned;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::CHAT_TEMPLATE_KEY;
use super::error::Refusal;
use super::limits::{Text, check_source, on_deep_stack};
use super::markup::{Markup, SplitFn};
use super::{Message, ProfileError, Role, jinja, percent, python, step_limits, string_methods};

/// The file name in errors: the GGUF key of the template.
const FILE: &str = CHAT_TEMPLATE_KEY;

/// A GGUF's own chat template, compiled.
///
/// It runs in an environment like that of transformers' `apply_chat_template`: trimmed blocks,
/// loop controls, Python's methods on strings, lists and maps, `%` on strings, Jinja2's
/// filters, `raise_exception`, `strftime_now`, `tojson` without HTML escapes, and lenient
/// undefined values. Tags of the `generation` extension, which only mark text for training, are
/// accepted.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: Option<String>,
    eos: Option<String>,
    markup: Markup,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of the model's special tokens, as
    /// template variables.
    ///
    /// # Errors
    /// The template is invalid, or fails on a plain question.
    pub fn new(
        source: &str,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<ChatTemplate, ProfileError> {
        check_source(FILE, source)?;
        on_deep_stack(|| ChatTemplate::compile(source, bos, eos))
    }

    fn compile(
        source: &str,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<ChatTemplate, ProfileError> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(string_methods::call);
        step_limits::apply(&mut environment);
        jinja::add(&mut environment);
        environment.add_function(percent::FUNCTION, percent::percent);
        environment.set_debug(true);
        let tojson = Value::from_function(python::tojson);
        step_limits::add_sized_filter(&mut environment, "tojson", tojson);
        environment.add_function("strftime_now", |format: &str| {
            python::strftime(format, &Zoned::now())
        });
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                let error = Error::new(ErrorKind::InvalidOperation, "raise_exception");
                Err(error.with_source(Refusal(message)))
            },
        );
        // keep_trailing_newline stays off, as it is in Python.
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .and_then(|syntax| {
                environment.set_syntax(syntax);
                let source = without_generation_tags(source);
                environment.add_template_owned(FILE, percent::rewrite(&source).into_owned())
            })
            .map_err(|error| ProfileError::from_template(FILE, &error))?;
        let template = ChatTemplate {
            environment,
            source: source.to_owned(),
            bos: bos.map(str::to_owned),
            eos: eos.map(str::to_owned),
            markup: Markup::default(),
        };
        // A template that fails on the plainest of questions fails on all of them; one that
        // rejects it may still accept others.
        match template.greet() {
            Ok(_) | Err(ProfileError::Refused(_)) => Ok(template),
            Err(error) => Err(error),
        }
    }

    /// Renders the plainest of questions.
    fn greet(&self) -> Result<String, ProfileError> {
        self.render(&[Message::new(Role::User, "Hello")], &str::to_owned)
    }

    /// The same template, which escapes in messages the text that it writes around them to mark
    /// roles. Markers that are special tokens, which `split` finds, are left to the tokenizer.
    pub fn with_learned_markers(self, split: SplitFn<'_>) -> ChatTemplate {
        let markup = Markup::learn(&self, split);
        ChatTemplate { markup, ..self }
    }

    /// The same template, whose turns begin with these markers and no others: lines of messages
    /// that look like one are escaped, and an answer ends where one of its lines begins with
    /// one.
    #[must_use]
    pub fn with_markers(self, markers: Vec<String>) -> ChatTemplate {
        ChatTemplate {
            markup: Markup::of_lines(markers),
            ..self
        }
    }

    /// Markers at the start of a line that open another turn than the assistant's.
    pub fn markers(&self) -> &[String] {
        self.markup.turns()
    }

    /// A message's text as [`render`](Self::render) passes it to the template.
    pub fn shield(&self, role: Role, text: &str, protect: &dyn Fn(&str) -> String) -> String {
        self.markup.shield(role, text, protect)
    }

    /// Whether it renders a plain question as nothing, so that the model would not see it.
    pub fn is_silent(&self) -> bool {
        self.greet().is_ok_and(|text| text.trim().is_empty())
    }

    /// The source text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation, followed by the generation prompt. In each message's content,
    /// the template's own markers are escaped and `protect` is applied before the template sees
    /// it.
    pub fn render(
        &self,
        messages: &[Message],
        protect: &dyn Fn(&str) -> String,
    ) -> Result<String, ProfileError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                let content = self.shield(message.role, &message.content, protect);
                Value::from_pairs([("role", message.role.name()), ("content", content.as_str())])
            })
            .collect();
        let mut context = vec![
            ("messages", Value::from(messages)),
            // Defined as none, as in transformers.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(true)),
        ];
        context.extend(
            self.bos
                .as_deref()
                .map(|bos| ("bos_token", Value::from(bos))),
        );
        context.extend(
            self.eos
                .as_deref()
                .map(|eos| ("eos_token", Value::from(eos))),
        );
        let context = Value::from_pairs(context);
        on_deep_stack(|| {
            self.environment
                .get_template(FILE)
                .and_then(|template| {
                    Text::of(|text| template.render_captured_to(context, text).map(drop))
                })
                .map_err(|error| ProfileError::from_template(FILE, &error))
        })
    }
}

/// Replaces `{% generation %}` and `{% endgeneration %}` by a condition that always holds: the
/// text between them is kept, and the tags trim their surroundings as before.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut rewritten = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        rewritten.push_str(before);
        let word = tag
            .trim_start_matches("{%")
            .trim_end_matches("%}")
            .trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => rewritten.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => rewritten.push_str(&tag.replace("endgeneration", "endif")),
            _ => rewritten.push_str(tag),
        }
        rest = after;
    }
    rewritten.push_str(rest);
    Cow::Owned(rewritten)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, ProfileError> {
        let template = ChatTemplate::new(source, Some("<s>"), Some("</s>"))?;
        let messages = [
            Message::new(Role::User, " Hi "),
            Message::new(Role::Assistant, "a</think>b"),
        ];
        template.render(&messages, &str::to_owned)
    }

    #[test]
    fn blocks_are_trimmed_as_in_transformers() {
        let source =
            "{{ bos_token }}\n  {% for m in messages %}\n{{ m.role }}\n    {% endfor %}\n\n";
        assert_eq!(render(source).unwrap(), "<s>\nuser\nassistant\n");
    }

    #[test]
    fn what_templates_use_of_python_is_there() {
        for (source, expected) in [
            ("{{ messages[0]['content'].strip() }}", "Hi"),
            ("{{ messages[-1].content.split('</think>')[-1] }}", "b"),
            ("{{ messages[::-1][0]['role'] }}", "assistant"),
            ("{{ messages[1:]|length }}", "1"),
            (
                "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ loop.index0 }}{% endfor %}",
                "0",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
            (
                "{{ messages[0].get('name', 'nobody') }}{{ messages[0].tool_calls }}",
                "nobody",
            ),
            (
                "{{ tools is defined and tools is none }} {{ none }}",
                "True None",
            ),
            (
                "{% if add_generation_prompt and not missing %}go{% endif %}{{ eos_token }}",
                "go</s>",
            ),
            (
                "{{ messages[0] | tojson }}",
                r#"{"role": "user", "content": " Hi "}"#,
            ),
            (
                "a{%- generation -%} {{ 'b' }} {%- endgeneration %} c",
                "ab c",
            ),
            (
                "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('a') }}",
                "aa",
            ),
            (
                "{{ 'a' if messages[0].content is string and messages is not mapping }}",
                "a",
            ),
            (
                "{{ '[%s] %02d' % (messages[0].role, messages|length) }}",
                "[user] 02",
            ),
            ("{{ messages[-1].content.rsplit('</think>', 1)[0] }}", "a"),
            ("{{ messages[-1].content.partition('</think>')[2] }}", "b"),
            (
                "{{ messages[0].content.strip().removeprefix('H').find('i') }}",
                "0",
            ),
            ("{{ '7'.zfill(3) }}{{ 'a'.ljust(3) }}|", "007a  |"),
            ("{{ 'one two three four'|truncate(9) }}", "one..."),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
        let year = render("{{ strftime_now('%Y') }}").unwrap();
        assert_eq!(year.len(), 4, "{year}");
    }

    #[test]
    fn an_exception_that_a_template_raises_is_a_refusal_in_its_own_words() {
        let source =
            "{% if messages|length > 1 %}{{ raise_exception('One at a time!') }}{% endif %}";
        match render(source) {
            Err(ProfileError::Refused(message)) => assert_eq!(message, "One at a time!"),
            other => panic!("{other:?}"),
        }
        // In a macro too, where the error arrives wrapped.
        let source = "{% macro no() %}{{ raise_exception('No.') }}{% endmacro %}{{ no() }}";
        assert!(matches!(render(source), Err(ProfileError::Refused(message)) if message == "No."));
    }

    #[test]
    fn a_broken_template_names_its_line() {
        let error = render("one\n{% if %}").unwrap_err().to_string();
        assert!(
            error.starts_with("tokenizer.chat_template:2: syntax error"),
            "{error}"
        );
        let error = render("one\n\n{{ x.y.z }}").unwrap_err().to_string();
        assert!(
            error.starts_with("tokenizer.chat_template:3: undefined value"),
            "{error}"
        );
        for endless in [
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "{{ '{:99999}'.format(1) }}",
            "{{ '%99999d' % 1 }}",
            "{{ 'a'.ljust(99999) }}",
            "{{ messages | tojson(indent=18446744073709551615) }}",
        ] {
            assert!(render(endless).is_err(), "{endless}");
        }
    }

    #[test]
    fn a_template_that_writes_nothing_is_known() {
        let is_silent = |source| ChatTemplate::new(source, None, None).unwrap().is_silent();
        for source in ["{# nothing #}", " {% set x = 1 %}\n", "{{ '' }}"] {
            assert!(is_silent(source), "{source}");
        }
        for source in ["{{ messages[0].content }}", "{{ raise_exception('No.') }}"] {
            assert!(!is_silent(source), "{source}");
        }
    }

    #[test]
    fn every_message_is_protected() {
        let template = ChatTemplate::new(
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            None,
            None,
        );
        let messages = [
            Message::new(Role::System, "<x>"),
            Message::new(Role::User, "<x>"),
            Message::new(Role::Assistant, "<x>"),
        ];
        let text = template
            .unwrap()
            .render(&messages, &|text| text.replace("<x>", "<!x>"));
        assert_eq!(text.unwrap(), "<!x><!x><!x>");
    }
}
