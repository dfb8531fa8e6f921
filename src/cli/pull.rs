//! `incant pull`, and the download of models that other commands need.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use incant::catalog::{self, Cache, CatalogError, Located, Manifest, Progress, State};
use incant::open;
use incant::printable::printable;
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};

use super::output::{self, eprint_safe};

/// Download models, or list the available ones
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models; without one, the default model
    #[arg(value_name = "NAME", conflicts_with = "list")]
    names: Vec<String>,
    /// Show the catalogue: sizes, licences, and what is on this machine
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    consent: Consent,
    /// Download with a custom manifest; its model is known by name from then on
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["names", "list"])]
    manifest: Option<PathBuf>,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let cache = Cache::from_env()?;
        cache.sweep();
        if self.list {
            return list(&cache);
        }
        if let Some(file) = &self.manifest {
            let at = || format!("{}", file.display());
            let text = open::read_text(file, open::Kind::MANIFEST).with_context(at)?;
            let manifest = Manifest::parse(&text).with_context(at)?;
            if catalog::find(&manifest.name).is_some() {
                bail!(
                    "{}: the name {} belongs to a model of incant's own",
                    file.display(),
                    manifest.name
                );
            }
            pull(&cache, &manifest, self.consent)?;
            return Ok(cache.keep(&manifest, &text)?);
        }
        let mut names = self.names;
        if names.is_empty() {
            names.push(catalog::default_model().name.clone());
        }
        // All names are looked up first: a typo in the last one must not show only after an hour's
        // download.
        let manifests = names
            .iter()
            .map(|name| find_manifest(&cache, name))
            .collect::<Result<Vec<Manifest>, CatalogError>>()?;
        manifests
            .iter()
            .try_for_each(|manifest| pull(&cache, manifest, self.consent))
    }
}

/// Whether a model may be downloaded without a question.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Consent {
    /// Download missing models without asking; without a terminal to ask at, this is the default
    #[arg(long, short)]
    yes: bool,
}

/// Finds a model by its name or its file's path, and downloads it first, with [consent](obtain), if
/// it is in the catalogue and not on this machine.
pub(crate) fn ensure(name_or_file: &str, consent: Consent) -> anyhow::Result<Located> {
    let cache = Cache::from_env()?;
    cache.sweep();
    match cache.locate(name_or_file) {
        Err(CatalogError::NotPulled { name } | CatalogError::WrongSize { name, .. }) => {
            let manifest = find_manifest(&cache, &name)?;
            obtain(&cache, &manifest, consent, &Display::new())?;
            Ok(cache.locate(&name)?)
        }
        outcome => Ok(outcome?),
    }
}

fn find_manifest(cache: &Cache, name: &str) -> Result<Manifest, CatalogError> {
    cache.find(name)?.ok_or_else(|| cache.unknown(name))
}

/// Downloads a model. All commands follow one rule: its size and the gist of its licence are shown
/// on the standard error; a person at a terminal is asked; with `--yes`, or without a terminal, a
/// line announces the download.
fn obtain(
    cache: &Cache,
    manifest: &Manifest,
    consent: Consent,
    display: &Display,
) -> anyhow::Result<PathBuf> {
    show_terms(manifest);
    let name = &manifest.name;
    let size = DecimalBytes(manifest.size);
    let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
    if consent.yes || !can_ask {
        eprint_safe(&format!("Downloading {name}, {size}, under these terms"));
    } else if !confirm(&format!("Download {name}, {size}, under these terms?"))? {
        bail!("the model {name} is not on this machine, and was not downloaded");
    }
    Ok(cache.fetch(manifest, display)?)
}

fn pull(cache: &Cache, manifest: &Manifest, consent: Consent) -> anyhow::Result<()> {
    let path = cache.path(&manifest.name);
    let display = Display::new();
    let path = if cache.holds(manifest, &display)? {
        path
    } else {
        obtain(cache, manifest, consent, &display)?
    };
    let line = format!("{} is here: {}\n", manifest.name, path.display());
    Ok(output::print(&line)?)
}

fn show_terms(manifest: &Manifest) {
    let Manifest {
        title,
        quantization,
        licence,
        ..
    } = manifest;
    let size = DecimalBytes(manifest.size);
    eprint_safe(&format!("{title}, {quantization}, {size}"));
    eprint_safe(&format!("Licence: {} ({})", licence.id, licence.url));
    eprint_safe(licence.terms.trim());
}

/// Asks at a terminal.
fn confirm(question: &str) -> io::Result<bool> {
    eprint!("{} [Y/n] ", printable(question));
    io::stderr().flush()?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer)?;
    let answer = answer.trim().to_lowercase();
    Ok(read > 0 && ["", "y", "yes"].contains(&answer.as_str()))
}

fn list(cache: &Cache) -> anyhow::Result<()> {
    let mut rows = vec![["NAME", "SIZE", "TYPE", "LICENCE", "ON THIS MACHINE"].map(String::from)];
    let catalogue = cache.catalogue()?;
    for manifest in catalogue.manifests {
        let state = match cache.state(&manifest)? {
            State::Present => "yes".to_owned(),
            State::Partial { bytes } => format!("{}%", percent(bytes, manifest.size)),
            State::Absent => "no".to_owned(),
        };
        rows.push([
            manifest.name,
            DecimalBytes(manifest.size).to_string(),
            manifest.quantization,
            manifest.licence.id,
            state,
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths = [0, 1, 2, 3].map(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for [name, size, quantization, licence, state] in &rows {
        text += &format!(
            "{name:0$}  {size:>1$}  {quantization:2$}  {licence:3$}  {state}\n",
            widths[0], widths[1], widths[2], widths[3]
        );
    }
    text += &format!("\nModels are kept in {}\n", cache.dir.display());
    output::print(&text)?;
    for problem in catalogue.broken {
        eprint_safe(&format!("warning: {problem}"));
    }
    Ok(())
}

fn percent(bytes: u64, total: u64) -> u64 {
    (bytes as f64 / total as f64 * 100.0) as u64
}

/// Shows a progress bar on a terminal; elsewhere a line for each tenth.
struct Display {
    is_terminal: bool,
    name: RefCell<String>,
    bar: RefCell<Option<ProgressBar>>,
    total: Cell<u64>,
    tenths: Cell<u64>,
}

impl Display {
    fn new() -> Display {
        Display {
            is_terminal: io::stderr().is_terminal(),
            name: RefCell::default(),
            bar: RefCell::default(),
            total: Cell::new(0),
            tenths: Cell::new(0),
        }
    }
}

impl Progress for Display {
    fn note(&self, line: &str) {
        match &*self.bar.borrow() {
            Some(bar) => bar.suspend(|| eprint_safe(line)),
            None => eprint_safe(line),
        }
    }

    fn begin(&self, name: &str, total: u64) {
        name.clone_into(&mut self.name.borrow_mut());
        self.total.set(total);
        self.tenths.set(0);
        if self.is_terminal {
            let template = "{msg}  [{bar:30}]  {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
            let style = ProgressStyle::with_template(template)
                .expect("the template is a constant that a test draws")
                .progress_chars("=> ");
            let bar = ProgressBar::new(total)
                .with_style(style)
                .with_message(printable(name).into_owned());
            *self.bar.borrow_mut() = Some(bar);
        }
    }

    fn position(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.borrow() {
            // Bytes of an earlier download must not affect the speed.
            let jumps = bar.position() == 0 || bytes < bar.position();
            bar.set_position(bytes);
            if jumps {
                bar.reset_eta();
            }
            return;
        }
        let tenths = percent(bytes, self.total.get()) / 10;
        if tenths > self.tenths.replace(tenths) {
            let size = DecimalBytes(self.total.get());
            eprint_safe(&format!(
                "{}: {}% of {size}",
                self.name.borrow(),
                tenths * 10
            ));
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_draws_a_download() {
        let display = Display {
            is_terminal: true,
            ..Display::new()
        };
        display.begin("tiny", 1000);
        display.position(400);
        let drawn = display
            .bar
            .borrow()
            .as_ref()
            .map(|bar| (bar.position(), bar.length()));
        assert_eq!(drawn, Some((400, Some(1000))));
        display.note("a line above the bar");
        display.end();
        assert!(display.bar.borrow().is_none());
    }
}
