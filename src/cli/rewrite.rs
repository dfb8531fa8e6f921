//! Writing a model's file anew, as `export --merge` and `quantize` do, and saying what
//! became of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use incant::gguf::TensorType;
use incant::quantize::{Change, Rewrite, Target};
use indicatif::{ProgressBar, ProgressStyle};

use super::output;

/// Writes the file at `path`, with a bar meanwhile, and prints what is in it.
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

/// A bar on the standard error, if that is a terminal.
fn bar() -> ProgressBar {
    let template = "[{bar:30}]  {decimal_bytes} of {decimal_total_bytes}  {eta} left";
    let style = ProgressStyle::with_template(template)
        .expect("the template is a constant that a test draws")
        .progress_chars("=> ");
    ProgressBar::new(0).with_style(style)
}

/// How many tensors there are of each type, and what one should know of them.
fn summary(rewrite: &Rewrite<'_>) -> Vec<String> {
    let changes = rewrite.tensors();
    let mut kinds: BTreeMap<TensorType, usize> = BTreeMap::new();
    let mut replaced: BTreeMap<(TensorType, TensorType), usize> = BTreeMap::new();
    let mut requantized: BTreeMap<TensorType, usize> = BTreeMap::new();
    for change in changes {
        let before = change.tensor.kind;
        *kinds.entry(change.kind).or_default() += 1;
        if change.kind != change.wanted {
            *replaced.entry((change.kind, change.wanted)).or_default() += 1;
        }
        if before.block_size() > 1 && !change.is_copied() {
            *requantized.entry(before).or_default() += 1;
        }
    }
    let mut lines = vec![format!("tensors: {}", listed(&kinds))];
    let adapted = changes.iter().filter(|change| change.is_adapted()).count();
    if adapted > 0 {
        lines.push(format!("the adapter is merged into {adapted}"));
    }
    let copied = changes.iter().filter(|change| change.is_copied()).count();
    lines.push(format!("{copied} are as they were"));
    if let Target::Type(kind) = rewrite.target() {
        let matrices = changes.iter().filter(|change| change.is_matrix());
        lines.extend(
            matrices
                .filter(|change| change.wanted != kind)
                .map(|change| {
                    let (name, wanted) = (&change.tensor.name, change.wanted);
                    format!("note: {name} takes {wanted}, as it loses most by few bits")
                }),
        );
    }
    lines.extend(replaced.iter().map(|((kind, wanted), count)| {
        let block = wanted.block_size();
        format!(
            "note: {count} take {kind} for {wanted}: their rows are not whole blocks of {block}"
        )
    }));
    let is_rounded_again = |change: &Change<'_>| {
        let was_quantized = change.tensor.kind.block_size() > 1;
        change.is_adapted() && was_quantized && change.kind.bits_per_weight() < 8.0
    };
    let again = changes
        .iter()
        .filter(|change| is_rounded_again(change))
        .count();
    if again > 0 {
        lines.push(format!(
            "note: {again} are rounded to few bits a second time, which can undo much of the \
             adapter: --type F16 or Q8_0 keeps more of it"
        ));
    }
    if !requantized.is_empty() {
        let kinds = listed(&requantized);
        lines.push(format!(
            "note: {kinds} were quantized before: what that lost stays lost"
        ));
    }
    lines
}

/// Types and how often they are there: `109 F32, 127 F16`.
fn listed(kinds: &BTreeMap<TensorType, usize>) -> String {
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
