//! Arms: resolves the model id `MODEL[@PROFILE][+ADAPTER]`.

mod answered;
mod prompt;

use std::sync::Arc;

pub use answered::Answered;
pub use prompt::{Prompt, PromptBounds, PromptError, PromptInput};

use super::guidance::{GuidanceError, GuidanceOptions, ResolvedGuidance};
use super::{Adapter, ArmInfo, BoundProfile, Model, Profiles, Runtime};
use incant_engine::{self as engine, Client, Generation, Prefix, Request, SubmitError};
use incant_gguf::nearest::{listed, nearest};
use incant_gguf::printable::excerpt;
use incant_prompt::profile::{
    GuidanceDefaults, Message, Rendering, Role, SamplingDefaults, is_builtin,
};
use incant_prompt::text::Tokenizer;

/// A resolved arm.
#[derive(Clone)]
pub struct Arm {
    id: String,
    model: Arc<Model>,
    rendering: Rendering,
    /// The sampling defaults of chat.
    defaults: SamplingDefaults,
    /// The constant tokens at the start of each chat.
    chat_prefix: Option<Arc<Prefix>>,
    /// The constant text after them, which is encoded with the conversation.
    chat_tail: String,
    /// The constant tokens at the start of plain completions: those of a named profile.
    completion_prefix: Option<Arc<Prefix>>,
    adapter: Option<Arc<Adapter>>,
    /// The profiles to choose a variant from for each conversation, if the arm uses the default
    /// one.
    variants: Option<Arc<Profiles>>,
    /// The guidance and mix that its id asks for.
    guidance: GuidanceOptions,
}

/// The reason why an id names no arm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArmError {
    /// The arm's id is followed by something other than guidance or a mix.
    #[error(
        "the model '{}' ends with something other than guidance=WEIGHT, against=ARM, plausible=SHARE or mix=ARM*WEIGHT",
        excerpt(id)
    )]
    BadGuidance {
        /// The requested id.
        id: String,
    },
    /// The id begins with no model's id.
    #[error(
        "the model '{}' does not exist; there are {}",
        excerpt(id),
        listed(arms)
    )]
    UnknownModel {
        /// The requested id.
        id: String,
        /// The existing arms, the nearest first.
        arms: Vec<String>,
    },
    /// The model does not serve that profile.
    #[error(
        "the model '{model}' has no profile '{}' (profiles: {})",
        excerpt(profile),
        listed(profiles)
    )]
    UnknownProfile {
        /// The model's id.
        model: String,
        /// The requested profile.
        profile: String,
        /// The profiles that it serves, the nearest first.
        profiles: Vec<String>,
    },
    /// The model does not serve that adapter.
    #[error(
        "the model '{model}' has no adapter '{}'{}",
        excerpt(adapter),
        list(adapters)
    )]
    UnknownAdapter {
        /// The model's id.
        model: String,
        /// The requested adapter.
        adapter: String,
        /// The adapters that it serves, the nearest first.
        adapters: Vec<String>,
    },
}

/// Lists the adapters, if there are any.
fn list(adapters: &[String]) -> String {
    match adapters {
        [] => String::new(),
        adapters => format!(" (adapters: {})", listed(adapters)),
    }
}

/// Splits `[@PROFILE][+ADAPTER]` into the profile and the adapter.
fn parts(rest: &str) -> (Option<&str>, Option<&str>) {
    let (profile, adapter) = match rest.split_once('+') {
        Some((profile, adapter)) => (profile, Some(adapter)),
        None => (rest, None),
    };
    (profile.strip_prefix('@'), adapter)
}

impl Arm {
    /// Returns the arm of `model` that `rest` (`[@PROFILE][+ADAPTER]`) names.
    pub(super) fn resolve(model: &Arc<Model>, rest: &str) -> Result<Arm, ArmError> {
        let (profile, adapter) = parts(rest);
        let adapter = adapter
            .map(|name| {
                let adapters = model.adapters();
                let found = adapters.get(name).cloned();
                found.ok_or_else(|| ArmError::UnknownAdapter {
                    model: model.id().to_owned(),
                    adapter: name.to_owned(),
                    adapters: nearest(&excerpt(name), adapters.keys().cloned().collect()),
                })
            })
            .transpose()?;
        let recorded = adapter.as_ref().and_then(|adapter| adapter.profile());
        let profiles = model.profiles();
        let (rendering, bound) = Arm::rendering(model, &profiles, profile.or(recorded))?;
        let named = bound.filter(|_| profile.is_some());
        let is_default = profile.or(recorded).is_none() && bound.is_some();
        Ok(Arm {
            id: format!("{}{rest}", model.id()),
            model: Arc::clone(model),
            defaults: defaults_of(model, &rendering),
            rendering,
            chat_prefix: bound.and_then(BoundProfile::prefix).cloned(),
            chat_tail: bound.map_or("", BoundProfile::tail).to_owned(),
            completion_prefix: named.and_then(BoundProfile::whole).cloned(),
            adapter,
            variants: is_default.then(|| Arc::clone(&profiles)),
            guidance: GuidanceOptions::default(),
        })
    }

    /// Returns the same arm for a conversation. If it names no profile and the model's default
    /// profile has a variant in the language of the first question, the arm uses that variant. The
    /// variants declare this themselves (see
    /// [`Profile::variant_of`](incant_prompt::profile::Profile::variant_of)).
    pub fn for_conversation(&self, messages: &[Message]) -> Arm {
        let first = messages.iter().find(|message| message.role == Role::User);
        let language = first.and_then(|message| language_of(&message.content));
        let Some(bound) = language.and_then(|language| self.variant(language)) else {
            return self.clone();
        };
        let rendering = Rendering::Profile(Arc::clone(bound.profile()));
        Arm {
            defaults: defaults_of(&self.model, &rendering),
            rendering,
            chat_prefix: bound.prefix().cloned(),
            chat_tail: bound.tail().to_owned(),
            ..self.clone()
        }
    }

    /// Returns the variant of its default profile for a language, if there is one and the default
    /// profile is in another. A user's variant takes precedence over a built-in one; of several
    /// user's variants, which a folder of profiles cannot have, the first by name counts.
    fn variant(&self, language: &str) -> Option<&BoundProfile> {
        let Rendering::Profile(default) = &self.rendering else {
            return None;
        };
        let all = self.variants.as_deref()?.values();
        let fitting = all.filter(|bound| bound.profile().is_variant(default.name(), language));
        fitting
            .min_by_key(|bound| is_builtin(bound.profile()))
            .filter(|_| !default.language().eq_ignore_ascii_case(language))
    }

    /// Returns whether its profile follows the language of the first question.
    fn follows_language(&self) -> bool {
        let mut languages = LANGUAGES.iter();
        languages.any(|&(language, _)| self.variant(language).is_some())
    }

    /// Returns how the arm renders chat, and the profile whose prefix comes first: the profile that
    /// is named, or recorded in its adapter; else the file's chat template; else the default
    /// profile; else the text alone.
    fn rendering<'a>(
        model: &Model,
        profiles: &'a Profiles,
        profile: Option<&str>,
    ) -> Result<(Rendering, Option<&'a BoundProfile>), ArmError> {
        let of = |name: &str| {
            let bound = profiles.get(name)?;
            Some((Rendering::Profile(Arc::clone(bound.profile())), Some(bound)))
        };
        let found = match profile {
            Some("base") => Some((Rendering::Base, None)),
            Some("turn") => model
                .default_profile()
                .and_then(|name| profiles.get(name))
                .map(|bound| (Rendering::Turn(Arc::clone(bound.profile())), None)),
            Some(name) => of(name),
            None => Some(match (model.template(), model.chat_profile()) {
                (Some(template), _) => (Rendering::Template(Arc::clone(template)), None),
                (None, Some(name)) => of(name).unwrap_or((Rendering::Base, None)),
                (None, None) => (Rendering::Base, None),
            }),
        };
        found.ok_or_else(|| ArmError::UnknownProfile {
            model: model.id().to_owned(),
            profile: profile.unwrap_or_default().to_owned(),
            profiles: nearest(&excerpt(profile.unwrap_or_default()), model.profile_names()),
        })
    }

    /// Returns its id as requested, without guidance and mix.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns its id as requested, with guidance and mix.
    pub fn full_id(&self) -> String {
        if self.guidance == GuidanceOptions::default() {
            self.id.clone()
        } else {
            format!("{}{}", self.id, self.guidance)
        }
    }

    /// Returns the same arm with this guidance and mix.
    pub(super) fn with_guidance(mut self, options: GuidanceOptions) -> Arm {
        self.guidance = options;
        self
    }

    /// Resolves the guidance and the mix of its answers to a conversation: those of `options`, or
    /// else of its id, or else of its profile.
    ///
    /// # Errors
    /// See [`ResolvedGuidance::resolve`].
    pub fn guidance_for_chat(
        &self,
        runtime: &Runtime,
        options: &GuidanceOptions,
    ) -> Result<ResolvedGuidance, GuidanceError> {
        self.resolve_guidance(runtime, options, self.rendering.guidance())
    }

    /// Resolves the guidance and the mix of its completions: those of `options`, or else of its id.
    ///
    /// # Errors
    /// See [`ResolvedGuidance::resolve`].
    pub fn guidance_for_completion(
        &self,
        runtime: &Runtime,
        options: &GuidanceOptions,
    ) -> Result<ResolvedGuidance, GuidanceError> {
        self.resolve_guidance(runtime, options, None)
    }

    fn resolve_guidance(
        &self,
        runtime: &Runtime,
        options: &GuidanceOptions,
        default: Option<GuidanceDefaults>,
    ) -> Result<ResolvedGuidance, GuidanceError> {
        let options = if options == &GuidanceOptions::default() {
            &self.guidance
        } else {
            options
        };
        ResolvedGuidance::resolve(runtime, self, options, default)
    }

    /// Returns the maximum context, in tokens.
    pub fn context(&self) -> usize {
        self.model.context()
    }

    /// Returns the maximum number of tokens of an answer to `prompt`: what is left of the context.
    pub fn max_answer_tokens(&self, prompt: &Prompt) -> usize {
        self.context().saturating_sub(prompt.token_count())
    }

    /// Returns its model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        self.model.tokenizer()
    }

    /// Returns the source of the chat template in its model's file.
    pub fn template_source(&self) -> Option<&str> {
        self.model.template().map(|template| template.source())
    }

    /// Returns the sampling defaults of its chat answers: the profile's, and the model's for the
    /// keys that the profile leaves open. A model's defaults apply only to its native way of
    /// chatting: its own template, or if it has none, any profile. They do not apply to a profile
    /// that replaces a template, nor to `@base` and `@turn`.
    pub fn defaults(&self) -> &SamplingDefaults {
        &self.defaults
    }

    /// Returns the sampling defaults of completions after its profile's text.
    pub fn completion_defaults(&self) -> &SamplingDefaults {
        self.rendering.defaults()
    }

    /// Returns the profile that renders its conversations, including `base` and `turn`; `None` if
    /// the model's own chat template does.
    pub fn profile_name(&self) -> Option<&str> {
        self.rendering.profile_name()
    }

    /// Returns the tokens that end an answer.
    pub fn end_tokens(&self) -> Arc<[u32]> {
        Arc::clone(self.model.end_tokens())
    }

    /// Checks that the engine can ever run this number of sequences at once.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn check_capacity(&self, count: usize) -> Result<(), SubmitError> {
        self.model.engine().could_take(count)
    }

    /// Returns the adapter that its requests are computed with.
    pub fn adapter(&self) -> Option<engine::Adapter> {
        self.adapter.as_ref().map(|adapter| adapter.loaded.clone())
    }

    /// Submits a client's sequences to the engine: all of them, or none.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit<R: Into<Request>>(
        &self,
        client: Client,
        requests: Vec<R>,
    ) -> Result<Vec<Generation>, SubmitError> {
        self.model.engine().submit_for(client, requests)
    }

    /// Returns whether both are arms of one model.
    pub fn shares_model(&self, other: &Arm) -> bool {
        Arc::ptr_eq(&self.model, &other.model)
    }

    /// Returns whether each id means the same text to both, so that each can score the other's
    /// answers.
    pub fn shares_tokens(&self, other: &Arm) -> bool {
        self.shares_model(other)
            || self.model.spec().vocab == other.model.spec().vocab
                && self.tokenizer().has_texts_of(other.tokenizer())
    }

    /// Returns the arm's entry in a list of models.
    pub fn info(&self) -> ArmInfo {
        let model = self.model.id();
        let (profile, adapter) = parts(&self.id[model.len()..]);
        let profile_part = profile.map_or_else(String::new, |name| format!("@{name}"));
        // An adapter adds to the arm that it is used with.
        let parent = match (profile, adapter) {
            (_, Some(_)) => Some(format!("{model}{profile_part}")),
            (Some(_), None) => Some(model.to_owned()),
            (None, None) => None,
        };
        // A default profile with variants has the language of the question.
        let one_profile = match &self.rendering {
            Rendering::Profile(profile) if !self.follows_language() => Some(profile),
            _ => None,
        };
        ArmInfo {
            id: self.id.clone(),
            model: model.to_owned(),
            profile: profile.map(str::to_owned),
            adapter: adapter.map(str::to_owned),
            parent,
            language: one_profile.map(|profile| profile.language().to_owned()),
            sampling: self.defaults.clone().without_openai_defaults(),
            guidance: self.rendering.guidance().map(|guidance| guidance.weight),
        }
    }
}

/// Returns the sampling defaults of chat with this rendering; see [`Arm::defaults`].
fn defaults_of(model: &Model, rendering: &Rendering) -> SamplingDefaults {
    let own = rendering.defaults().clone();
    let is_own_way = match rendering {
        Rendering::Template(_) => true,
        Rendering::Profile(_) => model.template().is_none(),
        Rendering::Base | Rendering::Turn(_) => false,
    };
    if is_own_way {
        own.or(model.sampling())
    } else {
        own
    }
}

/// Returns whether a text is in a language.
type IsIn = fn(&str) -> bool;

/// The languages that are detected, by their BCP-47 tags. Another one needs one line here.
const LANGUAGES: &[(&str, IsIn)] = &[("ja", is_japanese)];

/// Detects the language of a text, if it is one of [`LANGUAGES`].
fn language_of(text: &str) -> Option<&'static str> {
    let mut languages = LANGUAGES.iter();
    let found = languages.find(|(_, is_in)| is_in(text));
    found.map(|&(language, _)| language)
}

/// Returns whether a text is Japanese: it has kana, and most of it is in kana and Han characters,
/// each of which counts as two letters.
fn is_japanese(text: &str) -> bool {
    let is_kana = |c: char| matches!(c, '\u{3041}'..='\u{30ff}' | '\u{ff66}'..='\u{ff9d}');
    let is_han = |c: char| matches!(c, '\u{3400}'..='\u{9fff}' | '々');
    let kana = text.chars().filter(|&c| is_kana(c)).count();
    let han = text.chars().filter(|&c| is_han(c)).count();
    let all = text.chars().filter(|c| c.is_alphabetic()).count();
    let others = all.saturating_sub(kana + han);
    kana > 0 && 2 * (kana + han) >= others
}

#[cfg(test)]
mod tests {
    use super::language_of;

    #[test]
    fn the_language_is_that_of_most_of_the_text() {
        for japanese in [
            "富士山の高さは？",
            "ありがとう",
            "ﾃｽﾄ",
            "PythonでHello Worldを表示する関数を書いて",
        ] {
            assert_eq!(language_of(japanese), Some("ja"), "{japanese}");
        }
        for other in [
            "",
            "Write a haiku.",
            "What does の mean?",
            "Translate 'こんにちは' to English, please.",
            "北京是中国的首都。",
        ] {
            assert_eq!(language_of(other), None, "{other}");
        }
    }
}
