//! Sample answers: a model's answers to some held-out prompts, before and after a run.

use std::path::Path;

use anyhow::Context;
use futures_util::future;
use incant::engine::FinishReason;
use incant::profile::{Message, Role};
use incant::runtime::{
    AnswerError, AnswerOptions, Arm, GuidanceOptions, PromptBounds, Runtime, TextAnswer,
};
use incant::train::data::Entry;
use incant::train::report::SampleAnswer;
use incant::train::samples::prompt_of;

use super::flags::Flags;
use super::prepare::options;

/// The maximum number of tokens of an answer.
const MAX_TOKENS: usize = 64;

/// The adapter's name while it answers.
const ADAPTER: &str = "adapter";

/// Some prompts, and the arm that answers them.
pub(super) struct Questions {
    prompts: Vec<Vec<Message>>,
    /// The name of the model.
    model: String,
    /// The profile of the training; `None` is the file's chat template.
    profile: Option<String>,
}

impl Questions {
    /// Takes the first `count` prompts of the held-out examples; plain texts have none.
    pub(super) fn new(
        held_out: &[Entry],
        count: usize,
        model: &str,
        profile: Option<&str>,
    ) -> Questions {
        let prompts = held_out.iter().filter_map(|entry| prompt_of(entry).ok());
        let prompts = prompts.filter(|prompt| !prompt.is_empty());
        Questions {
            prompts: prompts.take(count).map(<[Message]>::to_vec).collect(),
            model: model.to_owned(),
            profile: profile.map(str::to_owned),
        }
    }

    /// Generates the answers before the first step: of the model without an adapter, or with the
    /// one that the run starts from.
    pub(super) fn before(
        &self,
        runtime: &Runtime,
        from: Option<&Path>,
    ) -> anyhow::Result<Vec<SampleAnswer>> {
        let answers = self.ask(runtime, from)?;
        let prompts = self.prompts.iter().map(|prompt| format_prompt(prompt));
        let answers = prompts.zip(answers);
        Ok(answers
            .map(|(prompt, before)| SampleAnswer {
                prompt,
                before,
                after: None,
            })
            .collect())
    }

    /// Fills in the answers after the last step, with the adapter in the run's folder. The model is
    /// loaded again, as for serving.
    pub(super) fn after(&self, flags: &Flags, answers: &mut [SampleAnswer]) -> anyhow::Result<()> {
        if answers.is_empty() {
            return Ok(());
        }
        let loading = flags.student.models(None).resolve(options())?;
        let runtime = Runtime::new();
        runtime.loaded(loading.load_with_warnings()?);
        let after = self.ask(&runtime, Some(&flags.out))?;
        for (answer, after) in answers.iter_mut().zip(after) {
            answer.after = Some(after);
        }
        Ok(())
    }

    fn ask(&self, runtime: &Runtime, adapter: Option<&Path>) -> anyhow::Result<Vec<String>> {
        let mut id = self.model.clone();
        if let Some(profile) = &self.profile {
            id += &format!("@{profile}");
        }
        if let Some(path) = adapter {
            let models = runtime.models().iter();
            let mut named = models.filter(|model| model.id() == self.model);
            let model = named.next().context("the model is gone")?;
            model.load_adapter(ADAPTER, path)?;
            id += &format!("+{ADAPTER}");
        }
        let arm = runtime.arm(&id)?;
        let answers = self
            .prompts
            .iter()
            .map(|prompt| answer(runtime, &arm, prompt));
        let tokio = tokio::runtime::Builder::new_current_thread().build()?;
        tokio.block_on(future::try_join_all(answers))
    }
}

/// Formats a conversation for a report.
fn format_prompt(prompt: &[Message]) -> String {
    match prompt {
        [only] if only.role == Role::User => only.content.clone(),
        turns => {
            let turns = turns
                .iter()
                .map(|turn| format!("{}: {}", turn.role.name(), turn.content));
            turns.collect::<Vec<_>>().join("\n\n")
        }
    }
}

/// Generates the most likely answer (greedy decoding), as it would be served.
async fn answer(runtime: &Runtime, arm: &Arm, messages: &[Message]) -> anyhow::Result<String> {
    let guidance = arm.guidance_for_chat(runtime, &GuidanceOptions::default())?;
    let partners = guidance.partners_for_chat(arm, messages, &PromptBounds::default())?;
    let prompt = arm.chat(messages)?;
    let mut sampling = arm.sampling();
    sampling.temperature = 0.0;
    let options = AnswerOptions {
        max_tokens: Some(MAX_TOKENS),
        sampling,
        logprobs: None,
    };
    let mut answer = match TextAnswer::start(arm, prompt, &partners, options) {
        Err(AnswerError::PromptTooLong { .. }) => {
            return Ok("(the prompt is as long as the context)".to_owned());
        }
        answer => answer?,
    };
    let mut text = String::new();
    while let Some(step) = answer.next().await? {
        text += &step.text;
        if step.finish == Some(FinishReason::Length) {
            text += "…";
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_shown_with_who_speaks() {
        let user = Message::new(Role::User, "Hi");
        assert_eq!(format_prompt(std::slice::from_ref(&user)), "Hi");
        let turns = [Message::new(Role::System, "Be kind."), user];
        assert_eq!(format_prompt(&turns), "system: Be kind.\n\nuser: Hi");
    }
}
