//! Several arms choose one answer's tokens together: classifier-free guidance, and mixes.
//!
//! *Guidance* leads an arm away from its guide, which is usually the arm itself with the question
//! left empty: the guide's predictions come from the prompt alone, and the difference comes from
//! the question. A *mix* adds the distributions of other arms. Both are one mechanism (see
//! [`incant_sample::Mixture`]); each arm renders the same question in its own way.

mod options;
mod partners;

pub use options::{Guidance, GuidanceOptions};
pub use partners::{Partner, Partners, Sequences, submit};

use super::{Arm, Prompt, PromptBounds, PromptError, PromptInput, Runtime};
use incant_gguf::printable::excerpt;
use incant_prompt::profile::{GuidanceDefaults, Message, without_question};
use incant_sample::MAX_WEIGHT;

/// The maximum number of arms of a mix besides the arm that answers.
pub const MAX_MIX_ARMS: usize = 8;

/// The reason why guidance or a mix is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct GuidanceError {
    /// The field at fault, as requests name it: `mix[0].model`.
    pub field: String,
    /// The reason, in a sentence.
    pub message: String,
}

/// Returns why the partner in the field `partner_field` cannot shape the answer to the
/// prompt in the field `param`.
fn partner_error(error: PromptError, partner_field: &str, param: &str) -> GuidanceError {
    match error {
        PromptError::TooLong {
            context, at_least, ..
        } => GuidanceError {
            field: partner_field.to_owned(),
            message: format!(
                "the prompt of an arm that shapes the answer has at least {at_least} tokens, and its \
                 context only {context}"
            ),
        },
        PromptError::Refused(_) | PromptError::Cancelled => GuidanceError {
            field: param.to_owned(),
            message: excerpt(&error.to_string()).into_owned(),
        },
    }
}

fn refuse<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, GuidanceError> {
    Err(GuidanceError {
        field: field.into(),
        message: message.into(),
    })
}

/// The guide and the mix that shape an arm's answers, before there is a prompt.
#[derive(Clone)]
pub struct ResolvedGuidance {
    /// The arms of the mix.
    mix: Vec<(Arm, f32)>,
    guide: Option<Guide>,
    plausible: f32,
    /// Whether it was requested, not a profile's default.
    is_requested: bool,
}

#[derive(Clone)]
struct Guide {
    weight: f32,
    /// `None` is the arm itself with the question left empty.
    arm: Option<Arm>,
}

impl ResolvedGuidance {
    /// Resolves the guide and the mix of `arm` from `options`, or from `default` if those have
    /// neither guidance nor a mix with a weight other than 0.
    ///
    /// # Errors
    /// A number is out of range, or an arm is unknown or has another tokenizer.
    pub fn resolve(
        runtime: &Runtime,
        arm: &Arm,
        options: &GuidanceOptions,
        default: Option<GuidanceDefaults>,
    ) -> Result<ResolvedGuidance, GuidanceError> {
        let find = |id: &str, field: &str| {
            let found = runtime.arm(id);
            let other = found.or_else(|error| refuse(field, error.to_string()))?;
            if arm.shares_tokens(&other) {
                Ok(other)
            } else {
                refuse(
                    field,
                    format!("'{id}' has another tokenizer than '{}'", arm.id()),
                )
            }
        };
        if options.mix.len() > MAX_MIX_ARMS {
            return refuse("mix", format!("`mix` may hold at most {MAX_MIX_ARMS} arms"));
        }
        let mut mix = Vec::new();
        for (at, (id, weight)) in options.mix.iter().enumerate() {
            if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(weight) {
                return refuse(
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
        let is_requested = options.guidance.is_some() || !mix.is_empty();
        let guidance = options.guidance.clone().or(default);
        let guidance = guidance.unwrap_or(Guidance::new(0.0));
        let Guidance {
            weight,
            against,
            plausible,
        } = guidance;
        if !(0.0..=MAX_WEIGHT).contains(&weight) {
            return refuse(
                "guidance.weight",
                format!(
                    "guidance has the weight {weight}, but it must be between 0 and {MAX_WEIGHT}"
                ),
            );
        }
        if !(plausible > 0.0 && plausible <= 1.0) {
            return refuse(
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
        Ok(ResolvedGuidance {
            mix,
            guide,
            plausible,
            is_requested,
        })
    }

    /// Returns whether there is neither a guide nor a mix.
    pub fn has_no_partners(&self) -> bool {
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
    pub fn is_requested(&self) -> bool {
        self.is_requested && !self.has_no_partners()
    }

    /// Returns it in the form of [`GuidanceOptions::split`], such as `guidance=0.5`; `None` if there is
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

    /// Returns the partners of the arm's answer to a conversation, within the bounds of `bounds`.
    ///
    /// # Errors
    /// A chat template refuses the messages, or a prompt is out of bounds; or guidance was
    /// requested, and there is no question to leave empty.
    pub fn partners_for_chat(
        &self,
        arm: &Arm,
        messages: &[Message],
        bounds: &PromptBounds,
    ) -> Result<Partners, GuidanceError> {
        let as_guide = |error| partner_error(error, "guidance", "messages");
        let guide = |guide: &Guide| match &guide.arm {
            Some(other) => {
                let other = other.for_conversation(messages);
                let prompt = other.chat_within(messages, bounds).map_err(as_guide)?;
                Ok(Some((other, prompt)))
            }
            None => {
                let has_turns = arm.profile_name() != Some("base");
                let emptied = without_question(messages).filter(|_| has_turns);
                match emptied {
                    Some(emptied) => {
                        let prompt = arm.chat_within(&emptied, bounds).map_err(as_guide)?;
                        Ok(Some((arm.clone(), prompt)))
                    }
                    None if self.is_requested => refuse(
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
            let prompt = other.chat_within(messages, bounds);
            let prompt = prompt.map_err(|error| partner_error(error, "mix", "messages"))?;
            Ok((other, prompt))
        };
        self.partners(member, guide)
    }

    /// Returns the partners of the arm's completion of a text, within the bounds of `bounds`.
    ///
    /// # Errors
    /// A prompt is out of bounds; or guidance was requested, and the arm names no profile: without
    /// the text nothing is left.
    pub fn partners_for_completion(
        &self,
        arm: &Arm,
        input: &PromptInput,
        bounds: &PromptBounds,
    ) -> Result<Partners, GuidanceError> {
        let completed_by = |other: &Arm, partner_field: &str| {
            let prompt = other.completion_within(input, bounds);
            let prompt = prompt.map_err(|error| partner_error(error, partner_field, "prompt"))?;
            Ok((other.clone(), prompt))
        };
        let member = |other: &Arm| completed_by(other, "mix");
        let guide = |guide: &Guide| match &guide.arm {
            Some(other) => completed_by(other, "guidance").map(Some),
            None => {
                let prompt = arm.completion(&PromptInput::Tokens(Vec::new()));
                match prompt.token_count() {
                    0 => refuse(
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
        member: impl Fn(&Arm) -> Result<(Arm, Prompt), GuidanceError>,
        guide: impl Fn(&Guide) -> Result<Option<(Arm, Prompt)>, GuidanceError>,
    ) -> Result<Partners, GuidanceError> {
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
            return refuse("mix", "an arm has no tokens to continue from");
        }
        Ok(Partners {
            partners,
            plausible: self.plausible,
            report_mixture: self.is_requested,
            label: self.label(),
        })
    }
}
