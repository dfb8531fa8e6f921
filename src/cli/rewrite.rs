//! Writing a model's file anew, as `export --merge` and `quantize` do, and saying what
//! became of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use incant::gguf::TensorType;
use incant::quantize::{Rewrite, Target};
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
    let kinds = kinds.iter().map(|(kind, count)| format!("{count} {kind}"));
    let mut lines = vec![format!("tensors: {}", kinds.collect::<Vec<_>>().join(", "))];
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
    lines.extend(requantized.iter().map(|(kind, count)| {
        format!("note: {count} were {kind} before, so not the original numbers")
    }));
    lines
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
