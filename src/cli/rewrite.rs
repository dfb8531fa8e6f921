//! Writes a model's file with changed tensors, for `export --merge` and `quantize`, and prints a
//! summary.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use incant::gguf::TensorType;
use incant::quantize::{Change, Rewrite, Target};
use indicatif::{ProgressBar, ProgressStyle};

use super::output;

/// Writes the file at `path` with a progress bar, and prints a summary.
pub(super) fn write(rewrite: &Rewrite<'_>, path: &Path) -> anyhow::Result<()> {
    let bar = bar();
    let written = rewrite.write(path, |bytes, all| {
        bar.set_length(all);
        bar.inc(bytes);
    });
    bar.finish_and_clear();
    written.with_context(|| path.display().to_string())?;
    let size = output::size(path.metadata()?.len());
    let mut lines = vec![format!("{}: {size}", path.display())];
    lines.extend(summary(rewrite));
    Ok(output::print(&(lines.join("\n") + "\n"))?)
}

/// Returns a progress bar on the standard error, if that is a terminal.
fn bar() -> ProgressBar {
    let template = "[{bar:30}]  {decimal_bytes} of {decimal_total_bytes}  {eta} left";
    let style = ProgressStyle::with_template(template)
        .expect("the template is a constant that a test draws")
        .progress_chars("=> ");
    ProgressBar::new(0).with_style(style)
}

/// Returns the number of tensors of each type, and notes on them.
fn summary(rewrite: &Rewrite<'_>) -> Vec<String> {
    let changes = rewrite.tensors();
    let mut kinds = Kinds::new();
    let mut quantized_before = Kinds::new();
    for change in changes {
        *kinds.entry(change.kind).or_default() += 1;
        if was_quantized(change) && !change.is_copied() {
            *quantized_before.entry(change.tensor.kind).or_default() += 1;
        }
    }
    let mut lines = vec![format!("tensors: {}", listed(&kinds))];
    match count(changes, Change::is_adapted) {
        0 => {}
        adapted => lines.push(format!("the adapter is merged into {adapted}")),
    }
    lines.push(format!(
        "{} are as they were",
        count(changes, Change::is_copied)
    ));
    lines.extend(replacements(rewrite));
    match count(changes, is_rounded_again) {
        0 => {}
        again => lines.push(format!(
            "note: {again} are rounded to few bits a second time, which can undo much of the \
             adapter: --type F16 or Q8_0 keeps more of it"
        )),
    }
    if !quantized_before.is_empty() {
        let kinds = listed(&quantized_before);
        lines.push(format!(
            "note: {kinds} were quantized before: what that lost stays lost"
        ));
    }
    lines
}

/// Returns notes on tensors that have another type than requested.
fn replacements(rewrite: &Rewrite<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut replaced: BTreeMap<(TensorType, TensorType), usize> = BTreeMap::new();
    for change in rewrite.tensors() {
        let Change { wanted, kind, .. } = *change;
        if let Target::Type(asked) = rewrite.target()
            && change.is_matrix()
            && wanted != asked
        {
            let name = &change.tensor.name;
            lines.push(format!(
                "note: {name} takes {wanted}, as it loses most by few bits"
            ));
        }
        if kind != wanted {
            *replaced.entry((kind, wanted)).or_default() += 1;
        }
    }
    lines.extend(replaced.iter().map(|((kind, wanted), count)| {
        let block = wanted.block_size();
        format!(
            "note: {count} take {kind} for {wanted}: their rows are not whole blocks of {block}"
        )
    }));
    lines
}

fn count<'a>(changes: &[Change<'a>], is: impl Fn(&Change<'a>) -> bool) -> usize {
    changes.iter().filter(|&change| is(change)).count()
}

fn was_quantized(change: &Change<'_>) -> bool {
    change.tensor.kind.block_size() > 1
}

/// Returns whether the adapter's change can get lost in a second rounding to few bits.
fn is_rounded_again(change: &Change<'_>) -> bool {
    change.is_adapted() && was_quantized(change) && change.kind.bits_per_weight() < 8.0
}

/// The number of tensors of each type.
type Kinds = BTreeMap<TensorType, usize>;

/// Lists types with their numbers of tensors: `109 F32, 127 F16`.
fn listed(kinds: &Kinds) -> String {
    let kinds = kinds.iter().map(|(kind, count)| format!("{count} {kind}"));
    kinds.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_draws_bytes() {
        let bar = bar();
        bar.set_length(1000);
        bar.inc(400);
        assert_eq!((bar.position(), bar.length()), (400, Some(1000)));
    }
}
