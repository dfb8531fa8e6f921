//! A reference sampler: a full sort in double precision.

use super::*;

/// Returns the ids and weights of the tokens that may be drawn, most likely first.
pub(super) fn reference(logits: &[f32], params: &SamplingParams) -> Vec<(u32, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut tokens: Vec<(u32, f32)> = (0..)
        .zip(logits.iter().copied())
        .filter(|(_, l)| !l.is_nan())
        .collect();
    // A stable sort by logit alone leaves ties in the order of ids.
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
    let decimal = |p: f32| -> f64 { p.to_string().parse().unwrap() };
    if params.top_n_sigma > 0.0 {
        let finite = tokens
            .iter()
            .map(|t| f64::from(t.1))
            .filter(|l| l.is_finite());
        let count = finite.clone().count() as f64;
        let mean = finite.clone().sum::<f64>() / count;
        let variance = finite.map(|l| (l - mean).powi(2)).sum::<f64>() / count;
        let floor = f64::from(largest) - decimal(params.top_n_sigma) * variance.sqrt();
        tokens.retain(|t| f64::from(t.1) >= floor);
    }
    if params.top_k > 0 {
        tokens.truncate(params.top_k);
    }
    let mut tokens: Vec<(u32, f64)> = tokens
        .into_iter()
        .map(|(id, l)| {
            let exponent = f64::from(l - largest) / f64::from(params.temperature);
            (id, exponent.exp())
        })
        .collect();
    if params.typical_p < 1.0 {
        let total: f64 = tokens.iter().map(|t| t.1).sum();
        let surprise = |t: &(u32, f64)| -(t.1 / total).ln();
        let possible = tokens.iter().filter(|t| t.1 > 0.0);
        let entropy: f64 = possible.map(|t| t.1 / total * surprise(t)).sum();
        let apart = |t: &(u32, f64)| (surprise(t) - entropy).abs();
        let mut typical = tokens.clone();
        typical.sort_by(|a, b| apart(a).total_cmp(&apart(b)));
        let mut mass = 0.0;
        let crossing = typical.iter().position(|t| {
            mass += t.1;
            mass > decimal(params.typical_p) * total
        });
        typical.truncate(crossing.map_or(typical.len(), |at| at + 1));
        tokens.retain(|t| typical.contains(t));
    }
    if params.top_p < 1.0 {
        let total: f64 = tokens.iter().map(|t| t.1).sum();
        let mut mass = 0.0;
        let crossing = tokens.iter().position(|t| {
            mass += t.1;
            mass >= decimal(params.top_p) * total
        });
        tokens.truncate(crossing.map_or(tokens.len(), |at| at + 1));
    }
    if let Some(&(_, most)) = tokens.first() {
        tokens.retain(|t| t.1 >= decimal(params.min_p) * most);
    }
    tokens
}

/// Returns the tokens of the reference that remain when XTC is applied.
pub(super) fn struck(mut tokens: Vec<(u32, f64)>, threshold: f32) -> Vec<(u32, f64)> {
    tokens.retain(|t| t.1 > 0.0);
    let total: f64 = tokens.iter().map(|t| t.1).sum();
    let threshold: f64 = threshold.to_string().parse().unwrap();
    let last = tokens.iter().rposition(|t| t.1 >= threshold * total);
    tokens.split_off(last.unwrap_or(0))
}
