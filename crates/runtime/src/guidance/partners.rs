//! The partners of an answer: the sequences of its guide and of the other arms of its mix.

use super::super::compare;
use super::super::{Arm, Prompt};
use incant_engine::{
    self as engine, Client, GenerateRequest, Generation, JoinRequest, MemberSpec, Request,
    SubmitError, Together,
};

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
    pub(super) label: Option<String>,
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
    pub fn reporting_own_logprobs(self) -> Partners {
        Partners {
            report_mixture: false,
            ..self
        }
    }

    /// Returns the maximum number of tokens of an answer that fits the context of each of them, after
    /// its own prompt; without any partner there is no limit.
    pub fn max_answer_tokens(&self) -> usize {
        let partners = self.partners.iter();
        compare::max_answer_tokens(partners.map(|partner| (&partner.arm, &partner.prompt)))
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
    pub fn sequences(&self, arm: &Arm, mut request: GenerateRequest) -> Sequences {
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
pub struct Sequences {
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

/// Counts answers in an error that counts sequences, of which each answer has several.
fn in_answers(error: SubmitError, sequences: usize, answers: usize) -> SubmitError {
    match error {
        SubmitError::TooMany { limit, .. } if sequences > answers => SubmitError::TooMany {
            asked: answers,
            limit: limit * answers / sequences,
        },
        error => error,
    }
}

/// Submits a client's sequences to the engines of their models: those of one model together, all or
/// none. Sequences that one engine has begun are dropped if another has no slots. Returns one
/// generation for each element, in order, which holds those of its partners.
///
/// # Errors
/// An engine has no slots for its part.
pub fn submit(client: Client, all: Vec<Sequences>) -> Result<Vec<Generation>, SubmitError> {
    let sizes: Vec<usize> = all.iter().map(|one| 1 + one.others.len()).collect();
    let flat = all.into_iter().flat_map(|one| {
        let own = std::iter::once(one.own);
        own.chain(one.others)
    });
    let mut waiting: Vec<(usize, Arm, Request)> = flat
        .enumerate()
        .map(|(at, (arm, request))| (at, arm, request))
        .collect();
    let answers = sizes.len();
    let mut begun: Vec<(usize, Generation)> = Vec::with_capacity(waiting.len());
    while let Some((_, first, _)) = waiting.first() {
        let arm = first.clone();
        let same = |(_, other, _): &mut (usize, Arm, Request)| arm.shares_model(other);
        let (places, requests): (Vec<usize>, Vec<Request>) = waiting
            .extract_if(.., same)
            .map(|(at, _, request)| (at, request))
            .unzip();
        let sequences = requests.len();
        let generations = arm.submit(client, requests);
        let generations = generations.map_err(|error| in_answers(error, sequences, answers))?;
        begun.extend(places.into_iter().zip(generations));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_too_many_guided_answers_is_told_in_answers() {
        let error = |asked, limit| SubmitError::TooMany { asked, limit };
        // Each answer has a guide.
        assert_eq!(in_answers(error(10, 4), 10, 5), error(5, 2));
        assert_eq!(in_answers(error(10, 4), 10, 10), error(10, 4));
        let full = SubmitError::QueueFull { retry_after: 3 };
        assert_eq!(in_answers(full.clone(), 10, 5), full);
    }
}
