//! `incant ask`: answers one question in the terminal.

mod remote;

use std::io::{self, Read};
use std::sync::Arc;

use anyhow::{Context, bail};
use incant::analyze::Samplers;
use incant::engine::EngineOptions;
use incant::profile::{Message, Role};
use incant::runtime::{
    AnswerOptions, Arm, Guidance, GuidanceOptions, PromptBounds, Runtime, TextAnswer,
};
use incant::sample::SamplingParams;
use incant::server::{ranges, serve};
use serde_json::{Map, Value, json};

use super::local::Local;
use super::model_args::ModelArgs;
use super::output::Pieces;
use super::samplers::{self, SamplerArgs};

/// Answer one question in the terminal
///
/// On a terminal, characters of the answer that would be commands to it are written as
/// escapes such as \\u{1b}; a file or a pipe gets the answer as the model gives it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The question; - reads it from the standard input
    question: String,
    /// The arm that answers: MODEL[@PROFILE][+ADAPTER] [default: the model as it chats]
    #[arg(long, short)]
    arm: Option<String>,
    /// Ask this server, of incant or any other with OpenAI's REST API, instead of loading a
    /// model
    #[arg(
        long,
        value_name = "URL",
        conflicts_with_all = ["ModelArgs", "ComputeArgs", "FileArgs", "Consent"]
    )]
    url: Option<String>,
    /// The key of the server at --url
    #[arg(
        long,
        value_name = "KEY",
        env = "INCANT_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// Print the whole response, as `/v1/chat/completions` gives it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    models: ModelArgs,
    /// The system message
    #[arg(long, short)]
    system: Option<String>,
    /// 0 (always the most likely token) to 2
    #[arg(long, short)]
    temperature: Option<f32>,
    /// End the answer after this many tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Classifier-free guidance: lead the answer away from the part of the prompt that does not
    /// depend on the question, 0 (off) to 10 [default: the profile's]
    #[arg(long, value_name = "WEIGHT")]
    guidance: Option<f32>,
    /// Mix in another arm with the same tokenizer, with this weight; repeatable
    #[arg(long, value_name = "ARM*WEIGHT")]
    mix: Vec<String>,
    /// The seed of the random numbers; the same one repeats an answer
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    samplers: SamplerArgs,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if let Some(temperature) = self.temperature {
            samplers::check_float("--temperature", temperature, ranges::TEMPERATURE)?;
        }
        if self.max_tokens == Some(0) {
            bail!("--max-tokens must be at least 1");
        }
        let samplers = self.samplers.samplers()?;
        let mut question = self.question.clone();
        if question == "-" {
            question.clear();
            io::stdin()
                .read_to_string(&mut question)
                .context("cannot read the question")?;
            // A file may begin with a byte order mark.
            if question.starts_with('\u{feff}') {
                question.remove(0);
            }
        }
        if let Some(url) = &self.url {
            let server = remote::Server::new(url, self.api_key.as_deref());
            return self.ask(&server, &question, &samplers);
        }
        let models = self.models.clone().or_of_arms(&self.arm);
        let loaded = models
            .resolve(EngineOptions::default())?
            .load_with_warnings()?;
        let runtime = Runtime::new();
        let default = loaded[0].id().to_owned();
        runtime.loaded(loaded);
        if self.json {
            return self.ask_a_server_of_our_own(runtime, &question, &samplers);
        }
        let arm = runtime.arm(self.arm.as_deref().unwrap_or(&default))?;
        self.answer(&runtime, &arm, &question, &samplers)
    }

    /// Lets a server answer, and prints the answer.
    fn ask(
        &self,
        server: &remote::Server,
        question: &str,
        samplers: &Samplers,
    ) -> anyhow::Result<()> {
        let model = match &self.arm {
            Some(arm) => arm.clone(),
            None => server.first_model()?,
        };
        let body = self.request(&model, question, samplers)?;
        if self.json {
            server.whole(body)
        } else {
            server.streamed(body)
        }
    }

    /// Lets a server in this process answer.
    fn ask_a_server_of_our_own(
        &self,
        runtime: Runtime,
        question: &str,
        samplers: &Samplers,
    ) -> anyhow::Result<()> {
        let local = Local::bind()?;
        let serving = serve(
            local.listener,
            Arc::new(runtime),
            std::future::pending(),
            local.options,
        );
        local.tokio.spawn(serving);
        let server = remote::Server::new(&local.url, Some(&local.key));
        let asked = self.ask(&server, question, samplers);
        local.tokio.shutdown_background();
        asked
    }

    /// Returns the body of a chat request; parameters that are not on the command line are left to
    /// the server.
    fn request(
        &self,
        model: &str,
        question: &str,
        samplers: &Samplers,
    ) -> anyhow::Result<Map<String, Value>> {
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.push(json!({"role": "user", "content": question}));
        let GuidanceOptions { mix, .. } = self.guidance_options()?;
        let mix = mix
            .iter()
            .map(|(model, weight)| json!({"model": model, "weight": weight}));
        let mix: Vec<Value> = mix.collect();
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(model));
        body.insert("messages".to_owned(), json!(messages));
        for (name, value) in [
            ("temperature", json!(self.temperature)),
            ("max_tokens", json!(self.max_tokens)),
            ("guidance", json!(self.guidance)),
            ("seed", json!(self.seed)),
            ("mix", json!((!mix.is_empty()).then_some(mix))),
        ] {
            if !value.is_null() {
                body.insert(name.to_owned(), value);
            }
        }
        if let Value::Object(samplers) = serde_json::to_value(samplers)? {
            body.extend(samplers);
        }
        Ok(body)
    }

    /// Prints the answer as it is generated.
    fn answer(
        &self,
        runtime: &Runtime,
        arm: &Arm,
        question: &str,
        samplers: &Samplers,
    ) -> anyhow::Result<()> {
        let system = self.system.iter();
        let mut messages: Vec<Message> = system
            .map(|text| Message::new(Role::System, text))
            .collect();
        messages.push(Message::new(Role::User, question));
        let arm = &arm.for_conversation(&messages);
        let prompt = arm.chat(&messages)?;
        let guidance = arm.guidance_for_chat(runtime, &self.guidance_options()?)?;
        let partners = guidance.partners_for_chat(arm, &messages, &PromptBounds::default())?;
        let options = AnswerOptions {
            max_tokens: self.max_tokens.or(arm.defaults().max_tokens),
            sampling: self.sampling(arm, samplers),
            logprobs: None,
        };
        let mut answer = TextAnswer::start(arm, prompt, &partners, options)?;
        let mut out = Pieces::stdout();
        while let Some(step) = answer.blocking_next()? {
            out.push(&step.text)?;
            if out.reader_has_left() {
                return Ok(());
            }
        }
        Ok(out.end_line()?)
    }

    /// Returns the guidance and the mix of the answer.
    fn guidance_options(&self) -> anyhow::Result<GuidanceOptions> {
        let mix = self.mix.iter().map(|mix| {
            let parts = mix.rsplit_once('*');
            let read = parts.and_then(|(arm, weight)| Some((arm.to_owned(), weight.parse().ok()?)));
            read.with_context(|| format!("--mix {mix}: expected ARM*WEIGHT"))
        });
        Ok(GuidanceOptions {
            guidance: self.guidance.map(Guidance::new),
            mix: mix.collect::<anyhow::Result<_>>()?,
        })
    }

    fn sampling(&self, arm: &Arm, samplers: &Samplers) -> SamplingParams {
        let mut sampling = samplers::sampling(samplers, arm.defaults(), arm);
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.seed = self.seed;
        sampling
    }
}
