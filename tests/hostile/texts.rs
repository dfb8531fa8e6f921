//! Texts from untrusted sources: manifests, profiles and chat templates.

use incant::catalog::{Manifest, Source};
use incant::profile::{ChatTemplate, Message, Profile, ProfileError, Role};

use super::edits::Material;
use super::{Target, fuzz, refused};

/// The number of inputs of each kind.
const INPUTS: u64 = 3000;

/// The maximum length of the text that a template may render from the tests' input.
const LONGEST: usize = 32 << 20;

const TOML: [&str; 16] = [
    "\u{1b}[2J",
    "\u{7f}",
    "\"\"\"",
    "'''",
    "[[source]]\n",
    "[licence]\n",
    "= {",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a = 1\n",
    "1979-05-27T07:32:00Z",
    "../../etc/passwd",
    "--index-url=http://x",
    "\\u0000",
    "\\uD800",
    "\u{feff}",
    "\r",
];

/// Endless and expensive steps. Those that only fuel bounds are not included
/// (`crates/prompt/src/profile/step_limits.rs`).
const JINJA: [&str; 32] = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 'x' * 99999999 }}",
    "{{ [1] * 99999999 }}",
    "{{ ([1] * 99999999) | length }}",
    "{{ 'a\nb' | indent(18446744073709551615) }}",
    "{{ 'a\nb' | indent(1000000000000) }}",
    "{{ messages | tojson(indent=18446744073709551615) }}",
    "{{ messages | tojson(indent=4611686018427387904) }}",
    "{{ [[[[[[[[[1]]]]]]]]] | tojson(indent=99999999) }}",
    "{{ '%999999999999d' | format(1) }}",
    "{{ '%*d' | format(9999999999, 1) }}",
    "{{ '{:999999999999}'.format(1) }}",
    "{{ '%.999999999999f' | format(1.5) }}",
    "{{ strftime_now('%99999999999Y') }}",
    "{{ strftime_now('%Q%!%') }}",
    "{{ (-170141183460469231731687303715884105728) // -1 }}",
    "{{ 1 % 0 }}{{ 1 // 0 }}{{ 1 / 0 }}",
    "{{ 2 ** 99999 }}{{ 2 ** -1 }}",
    "{{ messages[99999999999999999999] }}{{ messages[-9:9:0] }}{{ messages[::-1] }}",
    "{{ range(9223372036854775807, -9223372036854775808, -9223372036854775808) }}",
    "{{ messages | batch(0) | list }}{{ messages | slice(0) | list }}",
    "{{ messages | slice(99999999999) | list }}{{ [1] | batch(99999999999, 0) | list }}",
    "{{ messages | sort | unique | join(messages) }}",
    "{{ ((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1",
    "{% if a %}{% if a %}{% if a %}{% if a %}{% if a %}{% if a %}{% if a %}{% if a %}{% if a %}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns }}{{ ns | tojson }}{% set ns.a = [[ns.a]] %}",
    "{% extends \"outside the blocks\" %}{% include \"short.jinja\" %}{{ self.turns() }}{{ super() }}",
    "{% block turns %}{% block prefix %}{% endblock %}{% endblock %}",
    "{% generation %}{%- endgeneration -%}{% generation",
    "{{ 'é' | title | truncate(1) }}{{ 'é'[0:1] }}{{ raise_exception('\u{1b}') }}",
];

#[test]
fn manifests_do_no_harm() {
    fuzz(
        "hostile::texts::manifests_do_no_harm",
        INPUTS,
        Manifests::new,
    );
}

#[test]
fn profiles_do_no_harm() {
    fuzz("hostile::texts::profiles_do_no_harm", INPUTS, Profiles::new);
}

#[test]
fn chat_templates_do_no_harm() {
    fuzz(
        "hostile::texts::chat_templates_do_no_harm",
        INPUTS,
        ChatTemplates::new,
    );
}

struct Manifests(Vec<Material>);

impl Manifests {
    fn new() -> Manifests {
        let files = [
            include_str!("../../models/gemma-3-270m.toml"),
            include_str!("../../models/smollm2-135m-instruct.toml"),
            include_str!("../models/qwen2.5-coder-0.5b-instruct.toml"),
        ];
        Manifests(files.map(|file| Material::text(file, &TOML)).into())
    }
}

impl Target for Manifests {
    fn materials(&self) -> &[Material] {
        &self.0
    }

    fn take(&self, _: usize, input: &[u8]) -> Result<bool, String> {
        let manifest = match Manifest::parse(&String::from_utf8_lossy(input)) {
            Ok(manifest) => manifest,
            Err(error) => return refused(&error),
        };
        // Values that become part of file names and URLs, and of arguments.
        let (mut paths, mut arguments) = (vec![manifest.name], Vec::new());
        for source in manifest.sources {
            match source {
                Source::HuggingFace {
                    repo,
                    revision,
                    file,
                    ..
                } => paths.extend([repo, revision, file]),
                Source::Pip { parts, .. } => {
                    for part in parts {
                        paths.push(part.file);
                        arguments.push(part.package);
                    }
                }
            }
        }
        let plain = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=".contains(c);
            text.chars().all(plain)
        };
        let climbs = |path: &str| path.split('/').any(|part| matches!(part, "" | "." | ".."));
        let bad_path = paths.iter().find(|path| climbs(path) || !plain(path));
        let is_option = |text: &str| text.starts_with('-') || !plain(text);
        let bad = bad_path.or(arguments.iter().find(|argument| is_option(argument)));
        bad.map_or(Ok(true), |bad| Err(format!("{bad:?} was accepted")))
    }
}

/// A conversation with every role and with texts that look like markup.
fn conversation() -> Vec<Message> {
    vec![
        Message::new(Role::System, "Be brief."),
        Message::new(Role::User, "hi\n# Query:\n{{ messages }}<|im_end|>"),
        Message::new(Role::Assistant, "# Answer:\nyes"),
        Message::new(Role::User, "日本語\u{0}🙂"),
    ]
}

struct Profiles(Vec<Material>);

impl Profiles {
    fn new() -> Profiles {
        let files = [
            include_str!("../../prompts/urial.jinja"),
            include_str!("../../prompts/urial-ja.jinja"),
        ];
        let words = [&TOML[..], &JINJA].concat();
        // The examples are plain text: without them, the other parts are changed more often.
        let short = |file: &str| {
            let (front, body) = file.split_once("{% block prefix %}").expect("a prefix");
            let (_, turns) = body.split_once("{% endblock %}").expect("an end");
            format!("{front}{{% block prefix %}}\nAnswer.\n\n{{% endblock %}}{turns}")
        };
        Profiles(
            files
                .map(|file| Material::text(&short(file), &words))
                .into(),
        )
    }
}

impl Target for Profiles {
    fn materials(&self) -> &[Material] {
        &self.0
    }

    fn take(&self, _: usize, input: &[u8]) -> Result<bool, String> {
        let profile = match Profile::parse("short.jinja", &String::from_utf8_lossy(input)) {
            Ok(profile) => profile,
            Err(error) => return refused(&error),
        };
        short_enough(profile.prefix())?;
        for messages in [conversation(), vec![Message::new(Role::User, "")]] {
            match profile.turns(&messages, &str::to_owned) {
                Ok(turns) => short_enough(&turns)?,
                Err(error) => _ = refused(&error)?,
            }
        }
        Ok(true)
    }
}

struct ChatTemplates(Vec<Material>);

impl ChatTemplates {
    fn new() -> ChatTemplates {
        let files = [
            include_str!("../fixtures/chat-template-qwen2.5.jinja"),
            include_str!("../fixtures/chat-template-smollm2.jinja"),
        ];
        ChatTemplates(files.map(|file| Material::text(file, &JINJA)).into())
    }
}

impl Target for ChatTemplates {
    fn materials(&self) -> &[Material] {
        &self.0
    }

    fn take(&self, _: usize, input: &[u8]) -> Result<bool, String> {
        let source = String::from_utf8_lossy(input);
        let template = match ChatTemplate::new(&source, Some("<s>"), None) {
            Ok(template) => template,
            Err(error) => return refused(&error),
        };
        match template.render(&conversation(), &str::to_owned) {
            Ok(text) => short_enough(&text).map(|()| true),
            // The template's own message, for the client.
            Err(ProfileError::Refused(_)) => Ok(true),
            Err(error) => refused(&error),
        }
    }
}

fn short_enough(text: &str) -> Result<(), String> {
    match text.len() {
        len if len > LONGEST => Err(format!("a text of {len} bytes")),
        _ => Ok(()),
    }
}
