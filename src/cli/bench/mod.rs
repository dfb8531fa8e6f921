//! `incant bench`: measures prefill and decoding speed beside the machine's limits; with `--url`,
//! the speed of servers under a chat workload.

mod load;
mod measure;

use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::{Context, bail};
use incant::catalog;
use incant::exec::Backend;
use incant::gguf::Gguf;
use incant::model::arch;
use serde::Serialize;

use self::measure::{Bench, Cost, Limits, Measured};
use super::output::{self, Align, grouped, size};
use super::pull::{self, Consent};
use crate::cli::model_args::ComputeArgs;

/// Measure how fast models run here, compared with the machine's limits; or, with --url, how fast a
/// server is under a chat workload
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model by name or file, repeatable; without one, the default model
    #[arg(long = "model", short, value_name = "NAME|FILE.gguf")]
    models: Vec<String>,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Prompt lengths, in tokens
    #[arg(
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        default_value = "128,512,1200"
    )]
    prefill: Vec<usize>,
    /// Numbers of sequences that decode together
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,2,4,8,16"
    )]
    batch: Vec<usize>,
    /// Context lengths that decoding continues from, in tokens; the sequences of a batch share the
    /// context
    #[arg(
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        default_value = "0,1200"
    )]
    depth: Vec<usize>,
    /// Number of measurements, of which the median is taken
    #[arg(long, value_name = "N", default_value = "3")]
    repeat: NonZeroUsize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten, next_help_heading = "Servers")]
    load: load::LoadArgs,
}

/// All measurements of one model.
#[derive(Serialize)]
struct Report {
    model: String,
    device: String,
    /// Seconds from opening the file to being ready.
    load_seconds: f64,
    /// Bytes of the weights in memory.
    weight_bytes: usize,
    /// The peak memory of the process, if the system reports it.
    peak_bytes: Option<u64>,
    /// The machine's limits; not measured for GPUs.
    limits: Option<Limits>,
    results: Vec<Row>,
}

/// One measurement.
#[derive(Serialize)]
struct Row {
    /// `prefill` or `decode`.
    kind: &'static str,
    /// Sequences.
    batch: usize,
    /// Tokens before the measured ones.
    depth: usize,
    /// Measured tokens per sequence.
    tokens: usize,
    /// Of all sequences.
    tokens_per_second: f64,
    /// The roofline bound: by memory or multiply-adds, whichever is lower.
    bound_tokens_per_second: Option<f64>,
    /// The one of the two that sets the bound.
    bound_by: Option<&'static str>,
}

impl Args {
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        if let Some(url) = &self.load.url {
            return self.load.run(url, self.json);
        }
        if self.models.is_empty() {
            self.models.push(catalog::default_model().name.clone());
        }
        if self.prefill.iter().chain(&self.batch).any(|&n| n == 0) {
            bail!("--prefill and --batch take numbers from 1 on");
        }
        let backend = self.compute.open()?;
        let limits = Limits::measure(&backend)?;
        let mut reports = Vec::new();
        for name in &self.models {
            let report = self.model(name, &backend, limits)?;
            if !self.json {
                output::print(&report.table())?;
            }
            reports.push(report);
        }
        if self.json {
            output::print(&output::json(&reports)?)?;
        }
        Ok(())
    }

    /// Checks that all measurements fit the context.
    fn check_lengths(&self, context: usize) -> anyhow::Result<()> {
        if let Some(tokens) = self.prefill.iter().find(|&&tokens| tokens > context) {
            bail!("a prompt of {tokens} tokens is longer than the context of {context}");
        }
        let steps = measure::STEPS;
        if let Some(depth) = self.depth.iter().find(|&&depth| depth + steps > context) {
            bail!("{depth} tokens and {steps} decoded ones exceed the context of {context}");
        }
        Ok(())
    }

    fn model(
        &self,
        name: &str,
        backend: &Backend,
        limits: Option<Limits>,
    ) -> anyhow::Result<Report> {
        let located = pull::ensure(name, self.consent)?;
        let started = Instant::now();
        let gguf = Gguf::open(&located.path)?;
        let read = || {
            let spec = arch::read(&gguf)?;
            self.check_lengths(spec.context)?;
            let executor = backend.load(&gguf, &spec, None)?;
            Ok::<_, anyhow::Error>((spec, executor))
        };
        let (spec, executor) = read().with_context(|| located.path.display().to_string())?;
        let load_seconds = started.elapsed().as_secs_f64();
        drop(gguf);
        let footprint = executor.footprint();
        let cost = Cost::new(&spec, footprint.streamed);
        let mut bench = Bench::new(executor, self.repeat.get());
        let mut results = Vec::new();
        for &tokens in &self.prefill {
            let measured = bench.prefill(tokens)?;
            results.push(Row::new("prefill", &measured, &cost, limits.as_ref()));
        }
        for &depth in &self.depth {
            for &batch in &self.batch {
                let measured = bench.decode(batch, depth)?;
                results.push(Row::new("decode", &measured, &cost, limits.as_ref()));
            }
        }
        Ok(Report {
            model: located.name,
            device: backend.to_string(),
            load_seconds,
            weight_bytes: footprint.resident,
            peak_bytes: measure::peak_memory(),
            limits,
            results,
        })
    }
}

impl Row {
    fn new(kind: &'static str, measured: &Measured, cost: &Cost, limits: Option<&Limits>) -> Row {
        let &Measured {
            batch,
            depth,
            tokens,
            seconds,
        } = measured;
        let all = (batch * tokens) as f64;
        let bound = limits.map(|limits| match kind {
            "prefill" => cost.prefill(tokens, limits),
            _ => cost.decode(batch, depth + tokens / 2, limits),
        });
        Row {
            kind,
            batch,
            depth,
            tokens,
            tokens_per_second: all / seconds,
            bound_tokens_per_second: bound.map(|(tokens_per_second, _)| tokens_per_second),
            bound_by: bound.map(|(_, by)| by),
        }
    }
}

impl Report {
    fn table(&self) -> String {
        let mut text = format!("{} on {}\n", self.model, self.device);
        text += &format!(
            "  ready in {:.2} s; {} of weights",
            self.load_seconds,
            size(self.weight_bytes as u64)
        );
        if let Some(bytes) = self.peak_bytes {
            text += &format!("; the process took {} at most", size(bytes));
        }
        text.push('\n');
        if let Some(limits) = &self.limits {
            text += &format!(
                "  the machine reads {:.1} GB/s and does {:.0} billion multiply-adds a second\n",
                limits.bytes_per_second / 1e9,
                limits.macs_per_second / 1e9
            );
        }
        text.push('\n');
        let head = [
            "work",
            "sequences",
            "after",
            "tokens/s",
            "of the bound",
            "bound by",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for row in &self.results {
            let work = match row.kind {
                "prefill" => format!("prefill of {}", grouped(row.tokens as u64)),
                _ => "decode".to_owned(),
            };
            let share = row
                .bound_tokens_per_second
                .map(|bound| format!("{:.0}%", 100.0 * row.tokens_per_second / bound));
            rows.push(vec![
                work,
                row.batch.to_string(),
                grouped(row.depth as u64),
                format!("{:.1}", row.tokens_per_second),
                share.unwrap_or_default(),
                row.bound_by.unwrap_or_default().to_owned(),
            ]);
        }
        use Align::{Left, Right};
        text += &output::table(&[Left, Right, Right, Right, Right, Left], &rows);
        text.push('\n');
        text
    }
}
