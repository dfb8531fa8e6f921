//! Divergences of distributions, and their gradients.

use super::*;

#[test]
fn divergences_are_those_of_whole_distributions_and_have_their_gradients() {
    for tiny in [Tiny::gemma2(), Tiny::granite()] {
        let tiny = Tiny {
            weights: GgmlDType::F32,
            ..tiny
        };
        let subject = Subject::new(&tiny);
        let lora = random_adapter(&subject.spec, 0.2);
        let student = subject.model(Some(lora.clone()), false);
        // The teacher has other prompts before the same answers.
        let answers = batch();
        let mut questions = answers.clone();
        for sample in &mut questions.sequences {
            sample.tokens.splice(0..1, tiny::tokens(77, 5));
            sample.counts.splice(0..1, [false; 5]);
        }
        let teacher = student.unadapted(&questions).expect("it runs");
        let found = student.divergences(&answers, &teacher).expect("it runs");

        let distributions = |batch: &Batch, lora: Option<&Lora>| -> Vec<Vec<f64>> {
            let mut executor = subjects::reference().load(&subject.gguf);
            let adapter = lora.map(|lora| executor.add_adapter(lora).expect("it fits"));
            let mut rows = Vec::new();
            for sample in &batch.sequences {
                let sequence = executor.begin_with_adapter(adapter).expect("it is there");
                let (tokens, wanted) = (&sample.tokens[..], Wanted::All);
                let chunk = Chunk {
                    sequence,
                    tokens,
                    wanted,
                    precision: Precision::Exact,
                };
                let logits = executor.forward(&[chunk]).expect("it runs");
                let counted = (1..tokens.len()).filter(|&place| sample.counts[place]);
                rows.extend(counted.map(|place| {
                    let row = logits.row(place - 1).iter().map(|&l| f64::from(l));
                    let sum: f64 = row.clone().map(f64::exp).sum();
                    row.map(|logit| logit - sum.ln()).collect::<Vec<f64>>()
                }));
            }
            rows
        };
        let without_gradients = student.without_gradients().divergences(&answers, &teacher);
        assert_eq!(
            numbers(&without_gradients.expect("it runs")),
            numbers(&found)
        );
        let p = distributions(&questions, None);
        let q = distributions(&answers, Some(&lora));
        for ((found, p), q) in numbers(&found).iter().zip(&p).zip(&q) {
            let expected: f64 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
            assert!(
                (f64::from(*found) - expected).abs() < 1e-3,
                "{found} and {expected}"
            );
        }
        let sum = || {
            let found = student.divergences(&answers, &teacher).expect("it runs");
            found.sum_all().expect("a sum")
        };
        let gradients = sum().backward().expect("it can go back");
        for (name, var) in student.variables() {
            let gradient = gradients
                .get(var)
                .unwrap_or_else(|| panic!("{name} has none"));
            let (slope, length) = slopes(var, gradient, 1e-2, || value(&sum()));
            let apart = (slope - length).abs() / length.max(1e-3);
            assert!(apart < 0.02, "{name}: {slope} and {length}");
        }
    }
}

#[test]
fn divergences_from_certain_tokens_are_what_their_log_probabilities_lack() {
    let subject = Subject::new(&Tiny::gemma2());
    let lora = random_adapter(&subject.spec, 0.2);
    let model = subject.model(Some(lora), false);
    let batch = batch();
    let targets = batch.sequences.iter().flat_map(|sample| {
        let counted = sample.tokens.iter().zip(&sample.counts);
        counted.filter(|(_, counts)| **counts)
    });
    let targets: Vec<Target> = targets.map(|(&token, _)| vec![(token, 1.0)]).collect();
    let targets: Vec<&Target> = targets.iter().collect();
    let found = model.sparse_divergences(&batch, &targets).expect("it runs");
    let logprobs = model.logprobs(&batch).expect("it runs");
    let expected = numbers(&logprobs.neg().expect("numbers"));
    assert_eq!(numbers(&found), expected);
    let without_gradients = model.without_gradients();
    let without_gradients = without_gradients.sparse_divergences(&batch, &targets);
    let without_gradients = without_gradients.expect("it runs");
    assert!(
        !without_gradients.track_op(),
        "it keeps what nobody asks for"
    );
    assert_eq!(numbers(&without_gradients), expected);

    let sum = |tensor: Tensor| tensor.sum_all().expect("a sum");
    let found = sum(found).backward().expect("it can go back");
    let expected = sum(logprobs.neg().expect("numbers")).backward();
    let expected = expected.expect("it can go back");
    for (name, var) in model.variables() {
        let [found, expected] =
            [&found, &expected].map(|gradients| numbers(gradients.get(var).expect("a gradient")));
        assert!(apart(&found, &expected) < 1e-3, "{name}");
    }
}
