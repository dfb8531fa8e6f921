//! Arms: `MODEL[@PROFILE][+ADAPTER]`, resolved.

mod answered;
mod prompt;

use std::sync::Arc;

pub use answered::Answered;
pub use prompt::{Prompt, PromptError, PromptInput, Wanted};

use super::together::{Say, WishError, Wishes};
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
    /// How chat is rendered.
    rendering: Rendering,
    /// How chat is sampled where the client does not say.
    defaults: SamplingDefaults,
    /// The constant tokens that come first, in chat.
    chat_prefix: Option<Arc<Prefix>>,
    /// Constant text after them that is encoded with the conversation.
    chat_tail: String,
    /// The constant tokens of plain completions: a named profile's.
    completion_prefix: Option<Arc<Prefix>>,
    adapter: Option<Arc<Adapter>>,
    /// The profiles to choose among for a conversation, where the default one was taken.
    variants: Option<Arc<Profiles>>,
    /// What its id wishes beside it.
    wishes: Wishes,
}

/// There is no such arm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArmError {
    /// What follows the arm's id is no wish.
    #[error(
        "the model '{}' ends with something other than guidance=WEIGHT, against=ARM, plausible=SHARE or mix=ARM*WEIGHT",
        excerpt(id)
    )]
    BadWish {
        /// What was asked for.
        id: String,
    },
    /// No model's id begins the arm's.
    #[error(
        "the model '{}' does not exist; there are {}",
        excerpt(id),
        listed(arms)
    )]
    UnknownModel {
        /// What was asked for.
        id: String,
        /// The arms there are, the nearest first.
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
        /// What was asked for.
        profile: String,
        /// The profiles it serves, the nearest first.
        profiles: Vec<String>,
    },
    /// The model has no such adapter.
    #[error(
        "the model '{model}' has no adapter '{}'{}",
        excerpt(adapter),
        list(adapters)
    )]
    UnknownAdapter {
        /// The model's id.
        model: String,
        /// What was asked for.
        adapter: String,
        /// The adapters it serves, the nearest first.
        adapters: Vec<String>,
    },
}

/// The adapters that there are, if any.
fn list(adapters: &[String]) -> String {
    match adapters {
        [] => String::new(),
        adapters => format!(" (adapters: {})", listed(adapters)),
    }
}

/// The profile and the adapter of `[@PROFILE][+ADAPTER]`.
fn parts(rest: &str) -> (Option<&str>, Option<&str>) {
    let (profile, adapter) = match rest.split_once('+') {
        Some((profile, adapter)) => (profile, Some(adapter)),
        None => (rest, None),
    };
    (profile.strip_prefix('@'), adapter)
}

impl Arm {
    /// The arm of `model` that `rest` (`[@PROFILE][+ADAPTER]`) names.
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
            wishes: Wishes::default(),
        })
    }

    /// The same arm for a conversation: where it names no profile and the model's default
    /// one has a variant in the language of the first question, it is that one. Variants
    /// say so themselves (see [`Profile::variant_of`](incant_prompt::profile::Profile::variant_of)).
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

    /// The variant of its default profile for a language, if there is one and the default
    /// profile is in another. A built-in one gives way to a user's; among several of a
    /// user's, which a folder of profiles cannot have, the first by name counts.
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

    /// Whether its profile follows the language of the first question.
    fn follows_language(&self) -> bool {
        let mut languages = LANGUAGES.iter();
        languages.any(|&(language, _)| self.variant(language).is_some())
    }

    /// How the arm renders chat, and the profile whose prefix comes first: the
    /// profile that is named, or recorded in its adapter; else the file's chat template;
    /// else the default profile; else the text alone.
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

    /// Its id as it was asked for, without what it wishes beside it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its id as it was asked for, with all it wishes.
    pub fn full_id(&self) -> String {
        match self.wishes == Wishes::default() {
            true => self.id.clone(),
            false => format!("{}{}", self.id, self.wishes),
        }
    }

    /// The same arm with these wishes.
    pub(super) fn wishing(mut self, wishes: Wishes) -> Arm {
        self.wishes = wishes;
        self
    }

    /// Who has a say in its answers to a conversation: by `wishes`, or else by its id, or
    /// else by its profile.
    ///
    /// # Errors
    /// See [`Say::resolve`].
    pub fn say_in_chat(&self, runtime: &Runtime, wishes: &Wishes) -> Result<Say, WishError> {
        self.say(runtime, wishes, self.rendering.guidance())
    }

    /// Who has a say in how it continues a text: by `wishes`, or else by its id.
    ///
    /// # Errors
    /// See [`Say::resolve`].
    pub fn say_in_completion(&self, runtime: &Runtime, wishes: &Wishes) -> Result<Say, WishError> {
        self.say(runtime, wishes, None)
    }

    fn say(
        &self,
        runtime: &Runtime,
        wishes: &Wishes,
        default: Option<GuidanceDefaults>,
    ) -> Result<Say, WishError> {
        let wishes = match wishes == &Wishes::default() {
            true => &self.wishes,
            false => wishes,
        };
        Say::resolve(runtime, self, wishes, default)
    }

    /// The longest context, in tokens.
    pub fn context(&self) -> usize {
        self.model.context()
    }

    /// Its model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        self.model.tokenizer()
    }

    /// The chat template that its model's file brings along, as it is written there.
    pub fn template_source(&self) -> Option<&str> {
        self.model.template().map(|template| template.source())
    }

    /// How chat answers are sampled where the client does not say: the profile's defaults,
    /// and its model's for the keys that they leave open. A model's defaults are for the way
    /// that it chats in: its own template, or if it has none, whatever profile. They do not
    /// count for a profile that takes the place of a template, nor for `@base` and `@turn`.
    pub fn defaults(&self) -> &SamplingDefaults {
        &self.defaults
    }

    /// How texts after its profile's are continued where the client does not say.
    pub fn completion_defaults(&self) -> &SamplingDefaults {
        self.rendering.defaults()
    }

    /// The profile that renders its conversations, `base` and `turn` included; `None`
    /// where that is the model's own chat template.
    pub fn profile_name(&self) -> Option<&str> {
        self.rendering.profile_name()
    }

    /// The tokens that end an answer.
    pub fn end_tokens(&self) -> Arc<[u32]> {
        Arc::clone(self.model.end_tokens())
    }

    /// Whether the engine could ever take so many sequences at once.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn could_take(&self, count: usize) -> Result<(), SubmitError> {
        self.model.engine().could_take(count)
    }

    /// The adapter that its requests are computed under.
    pub fn adapter(&self) -> Option<engine::Adapter> {
        self.adapter.as_ref().map(|adapter| adapter.loaded.clone())
    }

    /// Hands a client's sequences to the engine: all of them, or none.
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

    /// Whether both are arms of one model.
    pub fn shares_model(&self, other: &Arm) -> bool {
        Arc::ptr_eq(&self.model, &other.model)
    }

    /// Whether an id means the same text to both, so that each can score what the other
    /// says.
    pub fn shares_tokens(&self, other: &Arm) -> bool {
        self.shares_model(other)
            || self.model.spec().vocab == other.model.spec().vocab
                && self.tokenizer().has_texts_of(other.tokenizer())
    }

    /// What a list of models says of it.
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
            sampling: self.defaults.clone().unlike_openai(),
            guidance: self.rendering.guidance().map(|guidance| guidance.weight),
        }
    }
}

/// How chat is sampled that is rendered like this; see [`Arm::defaults`].
fn defaults_of(model: &Model, rendering: &Rendering) -> SamplingDefaults {
    let own = rendering.defaults().clone();
    let is_own_way = match rendering {
        Rendering::Template(_) => true,
        Rendering::Profile(_) => model.template().is_none(),
        Rendering::Base | Rendering::Turn(_) => false,
    };
    match is_own_way {
        true => own.or(model.sampling()),
        false => own,
    }
}

/// Whether a text is in a language.
type IsIn = fn(&str) -> bool;

/// The languages that a text is recognised to be in, by their BCP-47 tags. A new one is one
/// line here.
const LANGUAGES: &[(&str, IsIn)] = &[("ja", is_japanese)];

/// The language of a text, as far as that can be told.
fn language_of(text: &str) -> Option<&'static str> {
    let mut languages = LANGUAGES.iter();
    let found = languages.find(|(_, is_in)| is_in(text));
    found.map(|&(language, _)| language)
}

/// Whether a text is Japanese: it has kana, and most of what it says is in kana and Han
/// characters, each of which says about as much as two letters.
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
