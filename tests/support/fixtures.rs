//! Values that tests of different subjects start from: options, a request, and a profile.

use std::sync::Arc;

use incant::engine::{EngineOptions, GenerateRequest};
use incant::profile::SamplingDefaults;
use incant::runtime::LoadOptions;
use incant::sample::SamplingParams;

use super::subjects;

/// The options of a model with the built-in profiles and little memory, which saves nothing.
pub(crate) fn load_options() -> LoadOptions {
    LoadOptions {
        backend: subjects::native().backend.clone(),
        kv_memory: Some(64 << 20),
        engine: EngineOptions::default(),
        context: None,
        profiles: incant::profile::load(None).expect("the built-in profiles"),
        default_profile: None,
        sampling: SamplingDefaults::default(),
        prefix_folder: None,
    }
}

/// A greedy request that nothing but `max_tokens` ends, without log-probabilities.
pub(crate) fn greedy(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        adapter: None,
        prefix: None,
        prompt: prompt.to_vec(),
        max_tokens,
        end_tokens: Arc::new([]),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        index: 0,
        logprobs: None,
        prompt_logprobs: None,
        feeds: Vec::new(),
        together: None,
        isolated: false,
        speculation: None,
        prediction: Vec::new(),
    }
}

/// The file of a profile that writes a conversation under headings. `settings` is the rest of its
/// front matter.
pub(crate) fn short_profile(settings: &str) -> String {
    profile("short", "Answer well.", ["# Query:", "# Answer:"], settings)
}

/// The file of a profile with this name, instruction, and lines before the turns of users and of
/// the assistant. `settings` is the rest of its front matter.
pub(crate) fn profile(name: &str, instruction: &str, turns: [&str; 2], settings: &str) -> String {
    let [question, answer] = turns;
    format!(
        r#"+++
name = "{name}"
title = "{name}"
description = "For tests"
language = "en"
shots = 0
version = 1
{settings}
+++
{{% block prefix %}}
{instruction}

{{% endblock %}}
{{% block turns %}}
{{% for message in messages %}}
{{{{ "{question}" if message.role == "user" else "{answer}" }}}}
{{{{ message.content }}}}

{{% endfor %}}
{answer}
{{% endblock %}}
"#
    )
}
