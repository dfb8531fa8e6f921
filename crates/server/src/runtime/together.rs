//! Several arms choose one answer's tokens together: classifier-free guidance, and mixes.
//!
//! *Guidance* leads an arm away from its guide, which is usually the arm itself with the question
//! left empty: the guide's predictions come from the prompt alone, and the difference comes from
//! the question. A *mix* adds the distributions of other arms. Both are one mechanism (see
//! [`incant_sample::Mixture`]); each arm renders the same question in its own way.

use std::fmt;

use super::{Arm, Prompt, PromptError, PromptInput, Runtime, Wanted};
use incant_engine::{
    self as engine, Client, GenerateRequest, Generation, JoinRequest, MemberSpec, Request,
    SubmitError, Together,
};
use incant_gguf::printable::excerpt;
use incant_prompt::profile::{GuidanceDefaults, Message, without_question};
use incant_sample::{DEFAULT_PLAUSIBILITY, MAX_WEIGHT};

/// The maximum number of arms of a mix besides the arm that answers.
const MOST_ARMS: usize = 8;

/// The guidance and the mix that are requested for an arm's answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    /// `None` is the profile's default, and a weight of 0 turns guidance off.
    pub guidance: Option<Guidance>,
    /// The ids of other arms to mix in, each with its weight.
    pub mix: Vec<(String, f32)>,
}

/// The guide that answers are led away from, and how far.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// From 0 to [`MAX_WEIGHT`]; the guidance scale of others is 1 more.
    pub weight: f32,
    /// The id of the guide's arm; `None` is the arm itself with the question left empty.
    pub against: Option<String>,
    /// The minimum probability of a plausible token, as a share of the most likely one's: above 0,
    /// at most 1.
    pub plausible: f32,
}

impl Guidance {
    /// Creates guidance away from the arm itself with the question left empty.
    pub fn new(weight: f32) -> Guidance {
        Guidance {
            weight,
            against: None,
            plausible: DEFAULT_PLAUSIBILITY,
        }
    }
}

impl Wishes {
    /// Splits an arm's id from the guidance and mix after it: `ID guidance=0.5`, optionally with
    /// `against=ARM`, `plausible=SHARE` and any number of `mix=ARM*WEIGHT`, each after a space.
    /// Returns `None` if any word after the id is none of these.
    ///
    /// ```
    /// use incant::runtime::Wishes;
    ///
    /// let (id, wishes) = Wishes::split("m@urial guidance=0.5 mix=m+short*0.25").unwrap();
    /// assert_eq!(id, "m@urial");
    /// assert_eq!(wishes.guidance.unwrap().weight, 0.5);
    /// assert_eq!(wishes.mix, [("m+short".to_owned(), 0.25)]);
    /// assert_eq!(Wishes::split("m@urial").unwrap().1, Wishes::default());
    /// ```
    pub fn split(text: &str) -> Option<(&str, Wishes)> {
        let keys = [" guidance=", " against=", " plausible=", " mix="];
        let first = keys.iter().filter_map(|key| text.find(key)).min();
        let Some(first) = first else {
            return Some((text, Wishes::default()));
        };
        let (id, rest) = text.split_at(first);
        let mut wishes = Wishes::default();
        let (mut weight, mut against, mut plausible) = (None, None, DEFAULT_PLAUSIBILITY);
        for word in rest.split_whitespace() {
            let (key, value) = word.split_once('=')?;
            match key {
                "guidance" => weight = Some(value.parse().ok()?),
                "against" => against = Some(value.to_owned()),
                "plausible" => plausible = value.parse().ok()?,
                "mix" => {
                    let (arm, weight) = value.rsplit_once('*')?;
                    wishes.mix.push((arm.to_owned(), weight.parse().ok()?));
                }
                _ => return None,
            }
        }
        match weight {
            Some(weight) => {
                wishes.guidance = Some(Guidance {
                    weight,
                    against,
                    plausible,
                });
            }
            None if against.is_some() => return None,
            None => {}
        }
        Some((id, wishes))
    }
}

impl fmt::Display for Wishes {
    /// Writes the form that [`Wishes::split`] reads after an id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(guidance) = &self.guidance {
            write!(f, " guidance={}", guidance.weight)?;
            if let Some(against) = &guidance.against {
                write!(f, " against={against}")?;
            }
            if guidance.plausible != DEFAULT_PLAUSIBILITY {
                write!(f, " plausible={}", guidance.plausible)?;
            }
        }
        let mut mix = self.mix.iter();
        mix.try_for_each(|(arm, weight)| write!(f, " mix={arm}*{weight}"))
    }
}

impl From<GuidanceDefaults> for Guidance {
    fn from(defaults: GuidanceDefaults) -> Guidance {
        Guidance {
            weight: defaults.weight,
            against: None,
            plausible: defaults.plausible,
        }
    }
}

/// The reason why guidance or a mix is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WishError {
    /// The field at fault, as requests name it: `mix[0].model`.
    pub field: String,
    /// The reason, in a sentence.
    pub message: String,
}

/// Returns why the partner in the field `wish` cannot shape the answer to the prompt in the field
/// `param`.
fn refused(error: PromptError, wish: &str, param: &str) -> WishError {
    match error {
        PromptError::TooLong {
            context, at_least, ..
        } => WishError {
            field: wish.to_owned(),
            message: format!(
                "the prompt of an arm that has a say has at least {at_least} tokens, and its \
                 context only {context}"
            ),
        },
        PromptError::Refused(_) | PromptError::Cancelled => WishError {
            field: param.to_owned(),
            message: excerpt(&error.to_string()).into_owned(),
        },
    }
}

fn wrong<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, WishError> {
    Err(WishError {
        field: field.into(),
        message: message.into(),
    })
}

/// The guide and the mix that shape an arm's answers, before there is a prompt.
#[derive(Clone)]
pub struct Say {
    /// The arms of the mix.
    mix: Vec<(Arm, f32)>,
    guide: Option<Guide>,
    plausible: f32,
    /// Whether it was requested, not a profile's default.
    is_wished: bool,
}

#[derive(Clone)]
struct Guide {
    weight: f32,
    /// `None` is the arm itself with the question left empty.
    arm: Option<Arm>,
}

impl Say {
    /// Resolves the guide and the mix of `arm` from `wishes`, or from `default` if those have
    /// neither guidance nor a mix with a weight other than 0.
    ///
    /// # Errors
    /// A number is out of range, or an arm is unknown or has another tokenizer.
    pub fn resolve(
        runtime: &Runtime,
        arm: &Arm,
        wishes: &Wishes,
        default: Option<GuidanceDefaults>,
    ) -> Result<Say, WishError> {
        let find = |id: &str, field: &str| {
            let found = runtime.arm(id);
            let other = found.or_else(|error| wrong(field, error.to_string()))?;
            match arm.shares_tokens(&other) {
                true => Ok(other),
                false => wrong(
                    field,
                    format!("'{id}' has another tokenizer than '{}'", arm.id()),
                ),
            }
        };
        if wishes.mix.len() > MOST_ARMS {
            return wrong("mix", format!("`mix` may hold at most {MOST_ARMS} arms"));
        }
        let mut mix = Vec::new();
        for (at, (id, weight)) in wishes.mix.iter().enumerate() {
            if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(weight) {
                return wrong(
                    format!("mix[{at}].weight"),
                    format!(
                        "a weight is {weight}, but must be between -{MAX_WEIGHT} and {MAX_WEIGHT}"
                    ),
                );
            }
            let other = find(id, &format!("mix[{at}].model"))?;
            mix.push((other, *weight));
        }
        // An arm with a weight of 0 has no effect.
        mix.retain(|(_, weight)| *weight != 0.0);
        let default = default.filter(|_| mix.is_empty()).map(Guidance::from);
        let is_wished = wishes.guidance.is_some() || !mix.is_empty();
        let guidance = wishes.guidance.clone().or(default);
        let guidance = guidance.unwrap_or(Guidance::new(0.0));
        let Guidance {
            weight,
            against,
            plausible,
        } = guidance;
        if !(0.0..=MAX_WEIGHT).contains(&weight) {
            return wrong(
                "guidance.weight",
                format!(
                    "guidance has the weight {weight}, but it must be between 0 and {MAX_WEIGHT}"
                ),
            );
        }
        if !(plausible > 0.0 && plausible <= 1.0) {
            return wrong(
                "guidance.plausible",
                format!("`plausible` is {plausible}, but must be above 0 and at most 1"),
            );
        }
        let against = against.map(|id| find(&id, "guidance.against"));
        let against = against.transpose()?;
        let guide = (weight != 0.0).then_some(Guide {
            weight,
            arm: against,
        });
        Ok(Say {
            mix,
            guide,
            plausible,
            is_wished,
        })
    }

    /// Returns whether there is neither a guide nor a mix.
    pub fn is_alone(&self) -> bool {
        self.mix.is_empty() && self.guide.is_none()
    }

    /// Returns the guidance in effect; `None` without a guide.
    pub fn guidance(&self) -> Option<Guidance> {
        let guide = self.guide.as_ref()?;
        Some(Guidance {
            weight: guide.weight,
            against: guide.arm.as_ref().map(|arm| arm.id().to_owned()),
            plausible: self.plausible,
        })
    }

    /// Returns whether a guide or a mix was requested and is in effect.
    pub fn is_wished(&self) -> bool {
        self.is_wished && !self.is_alone()
    }

    /// Returns it in the form of [`Wishes::split`], such as `guidance=0.5`; `None` if there is
    /// neither a guide nor a mix.
    pub fn label(&self) -> Option<String> {
        let guide = self.guide.iter().map(|guide| match &guide.arm {
            None => format!("guidance={}", guide.weight),
            Some(arm) => format!("guidance={} against={}", guide.weight, arm.id()),
        });
        let mix = self.mix.iter();
        let mix = mix.map(|(arm, weight)| format!("mix={}*{weight}", arm.id()));
        let parts: Vec<String> = guide.chain(mix).collect();
        (!parts.is_empty()).then(|| parts.join(" "))
    }

    /// Returns the partners of the arm's answer to a conversation, within the bounds of `wanted`.
    ///
    /// # Errors
    /// A chat template refuses the messages, or a prompt is out of bounds; or guidance was
    /// requested, and there is no question to leave empty.
    pub fn of_chat(
        &self,
        arm: &Arm,
        messages: &[Message],
        wanted: &Wanted,
    ) -> Result<Partners, WishError> {
        let as_guide = |error| refused(error, "guidance", "messages");
        let guide = |guide: &Guide| match &guide.arm {
            Some(other) => {
                let other = other.for_conversation(messages);
                let prompt = other.chat_within(messages, wanted).map_err(as_guide)?;
                Ok(Some((other, prompt)))
            }
            None => {
                let has_turns = arm.profile_name() != Some("base");
                let emptied = without_question(messages).filter(|_| has_turns);
                match emptied {
                    Some(emptied) => {
                        let prompt = arm.chat_within(&emptied, wanted).map_err(as_guide)?;
                        Ok(Some((arm.clone(), prompt)))
                    }
                    None if self.is_wished => wrong(
                        "guidance",
                        format!(
                            "'{}' has no turn here whose question could be left empty",
                            arm.id()
                        ),
                    ),
                    None => Ok(None),
                }
            }
        };
        let member = |other: &Arm| {
            let other = other.for_conversation(messages);
            let prompt = other.chat_within(messages, wanted);
            let prompt = prompt.map_err(|error| refused(error, "mix", "messages"))?;
            Ok((other, prompt))
        };
        self.partners(member, guide)
    }

    /// Returns the partners of the arm's completion of a text, within the bounds of `wanted`.
    ///
    /// # Errors
    /// A prompt is out of bounds; or guidance was requested, and the arm names no profile: without
    /// the text nothing is left.
    pub fn of_completion(
        &self,
        arm: &Arm,
        input: &PromptInput,
        wanted: &Wanted,
    ) -> Result<Partners, WishError> {
        let read_by = |other: &Arm, wish: &str| {
            let prompt = other.completion_within(input, wanted);
            let prompt = prompt.map_err(|error| refused(error, wish, "prompt"))?;
            Ok((other.clone(), prompt))
        };
        let member = |other: &Arm| read_by(other, "mix");
        let guide = |guide: &Guide| match &guide.arm {
            Some(other) => read_by(other, "guidance").map(Some),
            None => {
                let prompt = arm.completion(&PromptInput::Tokens(Vec::new()));
                match prompt.token_count() {
                    0 => wrong(
                        "guidance",
                        format!(
                            "'{}' names no profile: there is nothing without the prompt",
                            arm.id()
                        ),
                    ),
                    _ => Ok(Some((arm.clone(), prompt))),
                }
            }
        };
        self.partners(member, guide)
    }

    fn partners(
        &self,
        member: impl Fn(&Arm) -> Result<(Arm, Prompt), WishError>,
        guide: impl Fn(&Guide) -> Result<Option<(Arm, Prompt)>, WishError>,
    ) -> Result<Partners, WishError> {
        let mut partners = Vec::new();
        for (other, weight) in &self.mix {
            let (arm, prompt) = member(other)?;
            partners.push(Partner {
                arm,
                prompt,
                weight: *weight,
                keep: true,
            });
        }
        if let Some(of) = &self.guide
            && let Some((arm, prompt)) = guide(of)?
        {
            partners.push(Partner {
                arm,
                prompt,
                weight: -of.weight,
                keep: of.arm.is_some(),
            });
        }
        if partners
            .iter()
            .any(|partner| partner.prompt.token_count() == 0)
        {
            return wrong("mix", "an arm has no tokens to continue from");
        }
        Ok(Partners {
            partners,
            plausible: self.plausible,
            report_mixture: self.is_wished,
            label: self.label(),
        })
    }
}

/// An arm that shapes another's answers, as a guide or in a mix.
#[derive(Clone)]
pub struct Partner {
    /// The partner itself.
    pub arm: Arm,
    /// The prompt before the answer.
    pub prompt: Prompt,
    /// The weight of its distribution; negative leads away from it.
    pub weight: f32,
    /// Whether a later turn is likely to continue from here; false for guides.
    pub keep: bool,
}

/// All partners of an arm's answers to one prompt.
#[derive(Clone, Default)]
pub struct Partners {
    /// Empty if the arm answers by itself.
    pub partners: Vec<Partner>,
    /// See [`incant_engine::ensemble()`].
    pub plausible: f32,
    /// Whether log-probabilities are those of the mixture.
    pub report_mixture: bool,
    label: Option<String>,
}

impl Partners {
    /// Describes them, such as `guidance=0.5`; `None` if there are none.
    pub fn label(&self) -> Option<String> {
        self.label.clone().filter(|_| !self.partners.is_empty())
    }

    /// Returns the role markers that end an answer of all of them together: the arm's own, and
    /// those of each partner, which may open the next turn in its own way.
    pub fn markers(&self, prompt: &Prompt) -> Vec<String> {
        let mut markers = prompt.markers.clone();
        for marker in self.partners.iter().flat_map(|it| &it.prompt.markers) {
            if !markers.contains(marker) {
                markers.push(marker.clone());
            }
        }
        markers
    }

    /// Reports log-probabilities of the arm without its partners.
    pub fn measuring_the_arm(self) -> Partners {
        Partners {
            report_mixture: false,
            ..self
        }
    }

    /// Returns the maximum number of tokens of an answer that fits the context of each.
    pub fn room(&self) -> usize {
        match &self.partners[..] {
            [] => usize::MAX,
            some => super::room(some.iter().map(|partner| (&partner.arm, &partner.prompt))),
        }
    }

    /// Returns the number of tokens of all their prompts.
    pub fn prompt_tokens(&self) -> usize {
        let partners = self.partners.iter();
        partners.map(|partner| partner.prompt.token_count()).sum()
    }

    /// Lets `arm` generate an answer together with them, for the program itself.
    ///
    /// # Errors
    /// An engine has no slots for it.
    pub fn submit(&self, arm: &Arm, request: GenerateRequest) -> Result<Generation, SubmitError> {
        let own = vec![self.sequences(arm, request)];
        let generations = submit(Client::default(), own)?;
        // One generation is returned for each.
        generations.into_iter().next().ok_or(SubmitError::Draining)
    }

    /// Returns the sequences of one answer of `arm`: its own, and its partners'.
    pub(crate) fn sequences(&self, arm: &Arm, mut request: GenerateRequest) -> Sequences {
        let shares = self.partners.iter().map(|partner| MemberSpec {
            weight: partner.weight,
            same_engine: arm.shares_model(&partner.arm),
        });
        let shares: Vec<MemberSpec> = shares.collect();
        let mut others = Vec::new();
        if !shares.is_empty() {
            let (lead, seats) = engine::ensemble(&shares, self.plausible);
            request.together = Some(Together {
                lead,
                report_mixture: self.report_mixture,
            });
            for (partner, seat) in self.partners.iter().zip(seats) {
                let join = JoinRequest {
                    adapter: partner.arm.adapter(),
                    prefix: partner.prompt.prefix.clone(),
                    prompt: partner.prompt.ids.clone(),
                    member: seat,
                    keep: partner.keep,
                    isolated: request.isolated,
                };
                others.push((partner.arm.clone(), Request::from(join)));
            }
        }
        Sequences {
            own: (arm.clone(), request.into()),
            others,
        }
    }
}

/// The sequences of one generation.
pub(crate) struct Sequences {
    own: (Arm, Request),
    others: Vec<(Arm, Request)>,
}

impl Sequences {
    /// A sequence without partners.
    pub(crate) fn alone(arm: &Arm, request: impl Into<Request>) -> Sequences {
        Sequences {
            own: (arm.clone(), request.into()),
            others: Vec::new(),
        }
    }
}

/// Submits a client's sequences to the engines of their models: those of one model together, all or
/// none. Sequences that one engine has begun are dropped if another has no slots. Returns one
/// generation for each element, in order, which holds those of its partners.
pub(crate) fn submit(client: Client, all: Vec<Sequences>) -> Result<Vec<Generation>, SubmitError> {
    let sizes: Vec<usize> = all.iter().map(|one| 1 + one.others.len()).collect();
    let flat = all.into_iter().flat_map(|one| {
        let own = std::iter::once(one.own);
        own.chain(one.others)
    });
    let mut waiting: Vec<(usize, Arm, Request)> = flat
        .enumerate()
        .map(|(at, (arm, request))| (at, arm, request))
        .collect();
    let mut begun: Vec<(usize, Generation)> = Vec::with_capacity(waiting.len());
    while let Some((_, first, _)) = waiting.first() {
        let arm = first.clone();
        let same = |(_, other, _): &mut (usize, Arm, Request)| arm.shares_model(other);
        let (places, requests): (Vec<usize>, Vec<Request>) = waiting
            .extract_if(.., same)
            .map(|(at, _, request)| (at, request))
            .unzip();
        begun.extend(places.into_iter().zip(arm.submit(client, requests)?));
    }
    begun.sort_by_key(|(at, _)| *at);
    let mut begun = begun.into_iter().map(|(_, generation)| generation);
    let generations = sizes.into_iter().filter_map(|size| {
        let own = begun.next();
        let others = begun.by_ref().take(size - 1).collect();
        own.map(|own| own.with_partners(others))
    });
    Ok(generations.collect())
}
