//! A profile: its parsed and checked file, and the rendering of turns.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};

use super::front_matter::{self, FrontMatter, GuidanceDefaults, SamplingDefaults};
use super::limits::{Text, check_source, on_deep_stack};
use super::{Message, ProfileError, Role, markers, step_limits};

/// The block whose text is constant.
const PREFIX: &str = "prefix";
/// The block that writes a conversation after it.
const TURNS: &str = "turns";
/// A derived template with both blocks empty, so that only stray text is left.
const OUTSIDE: &str = "outside the blocks";

/// An alignment prompt: a constant prefix, and the markup of the turns that follow it.
///
/// The template has two blocks. `prefix` sees no variables. `turns` sees `messages`, each with
/// a `role` (`user` or `assistant`, never the same twice in a row) and a `content`, and
/// `system`, the system messages joined by blank lines, or none; it leaves the assistant's
/// answer open.
#[derive(Debug)]
pub struct Profile {
    file: String,
    front: FrontMatter,
    environment: Environment<'static>,
    prefix: String,
}

impl Profile {
    /// Parses a profile from its file's text; `file` names it in errors.
    ///
    /// All mistakes are found here: in the front matter, in the template's syntax, variables
    /// that do not exist, a missing block, text outside of the two, a marker that no turn
    /// begins with.
    pub fn parse(file: &str, source: &str) -> Result<Profile, ProfileError> {
        check_source(file, source)?;
        on_deep_stack(|| Profile::compile(file, source))
    }

    fn compile(file: &str, source: &str) -> Result<Profile, ProfileError> {
        let (front, template) = front_matter::split(file, source)?;
        let (profile, problems) = Profile::assemble(file, front, template);
        match (profile, problems.into_iter().next()) {
            (Some(profile), None) => Ok(profile),
            (_, Some(error)) => Err(error),
            (None, None) => unreachable!("a template without problems is a profile"),
        }
    }

    /// Builds a profile from a front matter and a template, if possible, and lists all problems
    /// of the template in the order in which they are found. A profile with problems can be
    /// inspected but not served.
    pub(super) fn assemble(
        file: &str,
        front: FrontMatter,
        template: String,
    ) -> (Option<Profile>, Vec<ProfileError>) {
        let environment = match environment(file, template) {
            Ok(environment) => environment,
            Err(error) => return (None, vec![error]),
        };
        let prefix = environment
            .get_template(file)
            .map_err(|error| ProfileError::from_template(file, &error))
            .and_then(|template| {
                let mut nothing = template.new_state();
                Text::of(|text| nothing.render_block_to_write(PREFIX, text))
                    .map_err(|error| block_error(file, PREFIX, &error))
            });
        let (prefix, error) = match prefix {
            Ok(prefix) => (prefix, None),
            Err(error) => (String::new(), Some(error)),
        };
        let profile = Profile {
            file: file.to_owned(),
            front,
            environment,
            prefix,
        };
        let problems = error.into_iter().chain(profile.problems()).collect();
        (Some(profile), problems)
    }

    /// The name, as in the model id `MODEL@NAME`.
    pub fn name(&self) -> &str {
        &self.front.name
    }

    /// A short title for lists.
    pub fn title(&self) -> &str {
        &self.front.title
    }

    /// Its purpose and the models it is meant for.
    pub fn description(&self) -> &str {
        &self.front.description
    }

    /// The BCP-47 tag of its language.
    pub fn language(&self) -> &str {
        &self.front.language
    }

    /// The profile that it replaces in conversations in its own language.
    pub fn variant_of(&self) -> Option<&str> {
        self.front.variant_of.as_deref()
    }

    /// Whether it is the variant of the profile `name` for a language, a BCP-47 tag, which must
    /// be the profile's own: `ja` is not `ja-JP`.
    pub fn is_variant(&self, name: &str, language: &str) -> bool {
        self.variant_of() == Some(name) && self.language().eq_ignore_ascii_case(language)
    }

    /// The number of few-shot examples in the prefix.
    pub fn shots(&self) -> usize {
        self.front.shots
    }

    /// The version, which increases whenever the text changes.
    pub fn version(&self) -> u32 {
        self.front.version
    }

    /// Stop markers: an answer ends where one of its lines begins with one of these.
    pub fn markers(&self) -> &[String] {
        &self.front.markers
    }

    /// Sampling defaults, for parameters that the client does not set.
    pub fn defaults(&self) -> &SamplingDefaults {
        &self.front.sampling
    }

    /// Defaults for classifier-free guidance, for requests that do not set it.
    pub fn guidance(&self) -> Option<GuidanceDefaults> {
        self.front.guidance
    }

    /// The constant text, without a BOS.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Renders a conversation as it follows the prefix, open at the answer.
    ///
    /// In each message, markers are escaped and then `protect` is applied; the result goes into
    /// the template unchanged. Consecutive messages of one role are merged, since a prompt made
    /// of examples has no form for two questions in a row.
    pub fn turns(
        &self,
        messages: &[Message],
        protect: &dyn Fn(&str) -> String,
    ) -> Result<String, ProfileError> {
        let context = self.context(messages, protect);
        on_deep_stack(|| {
            // The whole file is rendered first, which defines its macros.
            let mut rendered = self
                .environment
                .get_template(&self.file)
                .and_then(|template| template.render_captured_to(context, io::sink()))
                .map_err(|error| ProfileError::from_template(&self.file, &error))?;
            rendered
                .with_state_mut(|state| Text::of(|text| state.render_block_to_write(TURNS, text)))
                .map_err(|error| block_error(&self.file, TURNS, &error))
        })
    }

    /// Turns of short conversations that begin in different ways. A runtime encodes them after
    /// the prefix to verify that the prefix's tokens never depend on the text that follows.
    pub fn probes(&self) -> Result<Vec<String>, ProfileError> {
        probe_conversations()
            .iter()
            .map(|messages| self.turns(messages, &str::to_owned))
            .collect()
    }

    fn context(&self, messages: &[Message], protect: &dyn Fn(&str) -> String) -> Value {
        let safe = |text: &str| protect(&markers::escape(text, self.markers()));
        // A blank system message instructs nothing; a heading over nothing would only confuse.
        let speaks =
            |message: &&Message| message.role != Role::System || !message.content.trim().is_empty();
        let mut system: Option<String> = None;
        let mut turns: Vec<(Role, String)> = Vec::with_capacity(messages.len());
        for Message { role, content } in messages.iter().filter(speaks) {
            let content = safe(content);
            let open = match role {
                Role::System => system.as_mut(),
                _ => turns
                    .last_mut()
                    .filter(|(last, _)| last == role)
                    .map(|(_, text)| text),
            };
            match (open, role) {
                (Some(text), _) => {
                    text.push_str("\n\n");
                    text.push_str(&content);
                }
                (None, Role::System) => system = Some(content),
                (None, _) => turns.push((*role, content)),
            }
        }
        let messages: Vec<Value> = turns
            .into_iter()
            .map(|(role, content)| {
                Value::from_pairs([("role", role.name()), ("content", content.as_str())])
            })
            .collect();
        Value::from_pairs([
            ("messages", Value::from(messages)),
            ("system", Value::from(system)),
        ])
    }

    /// Problems that show only when the whole file is rendered.
    fn problems(&self) -> Vec<ProfileError> {
        let broken = |problem: String| ProfileError::broken(&self.file, None, problem);
        let mut problems = Vec::new();
        let probes = match self.probes() {
            Ok(probes) => probes,
            Err(error) => {
                problems.push(error);
                Vec::new()
            }
        };

        let known: Vec<&str> = self.environment.globals().map(|(name, _)| name).collect();
        let template = self.environment.get_template(&self.file);
        match template.map(|template| template.undeclared_variables(false)) {
            Ok(variables) => {
                let mut unknown: Vec<String> = variables
                    .into_iter()
                    .filter(|name| name != "messages" && name != "system")
                    .filter(|name| !known.contains(&name.as_str()))
                    .collect();
                unknown.sort();
                problems.extend(unknown.iter().map(|name| {
                    broken(format!(
                        "unknown variable {name:?}: turns have `messages` and `system`"
                    ))
                }));
            }
            Err(error) => problems.push(ProfileError::from_template(&self.file, &error)),
        }

        let outside = self.environment.get_template(OUTSIDE).and_then(|template| {
            let context = self.context(&[], &str::to_owned);
            Text::of(|text| template.render_captured_to(context, text).map(drop))
        });
        match outside {
            Ok(outside) => {
                let stray = outside.trim().lines().next();
                problems.extend(stray.map(|line| {
                    broken(format!(
                        "{line:?} stands outside of the blocks `{PREFIX}` and `{TURNS}` and \
                         would never be sent"
                    ))
                }));
            }
            // Already reported, unless it is in the text outside the blocks.
            Err(error) if problems.is_empty() => {
                problems.push(ProfileError::from_template(&self.file, &error));
            }
            Err(_) => {}
        }

        let written = |marker: &String| {
            let begins = |text: &String| text.lines().any(|line| line.starts_with(marker));
            probes.iter().any(begins)
        };
        // Markers cannot be checked if no turns could be rendered.
        if !probes.is_empty() {
            let absent = self.markers().iter().filter(|marker| !written(marker));
            problems.extend(
                absent.map(|marker| broken(format!("no line of the turns begins with {marker:?}"))),
            );
        }
        problems
    }
}

/// An environment with the template alone, without access to files, and strict: an undefined
/// variable is an error and not an empty text.
fn environment(file: &str, template: String) -> Result<Environment<'static>, ProfileError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    step_limits::apply(&mut environment);
    // Makes errors name the variable that is missing.
    environment.set_debug(true);
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build();
    let outside = format!(
        "{{% extends {file:?} %}}\
         {{% block {PREFIX} %}}{{% endblock %}}{{% block {TURNS} %}}{{% endblock %}}"
    );
    syntax
        .and_then(|syntax| {
            environment.set_syntax(syntax);
            environment.add_template_owned(file.to_owned(), template)?;
            environment.add_template_owned(OUTSIDE, outside)
        })
        .map_err(|error| ProfileError::from_template(file, &error))?;
    Ok(environment)
}

fn block_error(file: &str, block: &str, error: &minijinja::Error) -> ProfileError {
    match error.kind() {
        ErrorKind::UnknownBlock => {
            ProfileError::broken(file, None, format!("there is no block `{block}`"))
        }
        ErrorKind::UndefinedError if block == PREFIX => {
            let detail = error.detail().unwrap_or("a variable is not defined");
            let problem =
                format!("the block `{PREFIX}` is constant and has no variables: {detail}");
            ProfileError::broken(file, error.line(), problem)
        }
        _ => ProfileError::from_template(file, error),
    }
}

/// Beginnings that tokenizers treat differently.
fn probe_conversations() -> Vec<Vec<Message>> {
    let user = |content: &str| Message::new(Role::User, content);
    let assistant = |content: &str| Message::new(Role::Assistant, content);
    let system = |content: &str| Message::new(Role::System, content);
    let beginnings = [
        "Hello",
        "\n\nhello",
        "こんにちは",
        "42",
        "  two",
        "## Title",
        "🙂",
        "",
    ];
    let mut conversations: Vec<Vec<Message>> = Vec::new();
    for beginning in beginnings {
        conversations.push(vec![user(beginning)]);
        conversations.push(vec![system(beginning), user("Hello")]);
    }
    conversations.push(vec![
        user("Hello"),
        assistant("Hi! How can I help?"),
        user("Tell me more."),
    ]);
    conversations.push(vec![assistant("Hi! How can I help?"), user("Hello")]);
    conversations.push(vec![system("Be brief.")]);
    conversations
}

#[cfg(test)]
mod tests;
