//! A student small enough for tests: the logits of the next token are a product of two
//! matrices, both of which are trained.

use std::path::Path;

use candle_core::{D, Device, Tensor, Var};
use candle_nn::ops::log_softmax;

use super::student::{Batch, Student, Target};
use super::{TrainError, files};

/// Size of the vocabulary.
pub(super) const VOCABULARY: usize = 12;
const WIDTH: usize = 3;

#[derive(Clone)]
pub(super) struct Toy {
    variables: Vec<(String, Var)>,
    /// The initial values of the variables.
    frozen: [Tensor; 2],
}

impl Toy {
    pub(super) fn new() -> Toy {
        let matrix = |seed: usize| {
            let elements =
                (0..VOCABULARY * WIDTH).map(|at| ((at * 37 + seed * 101) % 89) as f32 / 89.0 - 0.5);
            let elements: Vec<f32> = elements.collect();
            Var::from_vec(elements, (VOCABULARY, WIDTH), &Device::Cpu).unwrap()
        };
        let [inputs, outputs] = [matrix(1), matrix(2)];
        let frozen = [&inputs, &outputs].map(|matrix| matrix.as_tensor().detach().copy().unwrap());
        Toy {
            variables: vec![
                ("inputs".to_owned(), inputs),
                ("outputs".to_owned(), outputs),
            ],
            frozen,
        }
    }

    /// The bit patterns of all elements of its variables.
    pub(super) fn bits(&self) -> Vec<u32> {
        let elements = self.variables.iter().flat_map(|(_, variable)| {
            let elements = variable.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            elements.into_iter().map(f32::to_bits)
        });
        elements.collect()
    }

    /// Makes its outputs infinite or NaN.
    pub(super) fn spoil(&self) {
        let (_, inputs) = &self.variables[0];
        inputs
            .set(&(inputs.as_tensor() * f64::INFINITY).unwrap())
            .unwrap();
    }

    /// Log-probabilities of all tokens before each that counts, and the tokens that count.
    fn rows(&self, batch: &Batch, [inputs, outputs]: [&Tensor; 2]) -> (Tensor, Tensor) {
        let (mut before, mut counted) = (Vec::new(), Vec::new());
        for sample in &batch.sequences {
            let places = (1..sample.tokens.len()).filter(|&place| sample.counts[place]);
            for place in places {
                before.push(sample.tokens[place - 1]);
                counted.push(sample.tokens[place]);
            }
        }
        let index = |ids: Vec<u32>| Tensor::new(ids, &Device::Cpu).unwrap();
        let hidden = inputs.index_select(&index(before), 0).unwrap();
        let logits = hidden.matmul(&outputs.t().unwrap()).unwrap();
        (log_softmax(&logits, D::Minus1).unwrap(), index(counted))
    }

    fn adapted(&self) -> [&Tensor; 2] {
        [&self.variables[0].1, &self.variables[1].1].map(Var::as_tensor)
    }
}

impl Student for Toy {
    fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    fn logprobs(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        let (rows, counted) = self.rows(batch, self.adapted());
        let chosen = rows.gather(&counted.unsqueeze(1)?, 1)?;
        Ok(chosen.squeeze(1)?)
    }

    fn unadapted(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        let [inputs, outputs] = &self.frozen;
        Ok(self.rows(batch, [inputs, outputs]).0)
    }

    fn divergences(&self, batch: &Batch, teacher: &Tensor) -> Result<Tensor, TrainError> {
        let (rows, _) = self.rows(batch, self.adapted());
        let each = (teacher.exp()? * (teacher - rows)?)?;
        Ok(each.sum(1)?)
    }

    fn sparse_divergences(&self, batch: &Batch, targets: &[&Target]) -> Result<Tensor, TrainError> {
        let (rows, _) = self.rows(batch, self.adapted());
        let mut dense = vec![0f32; targets.len() * VOCABULARY];
        for (dense, target) in dense.chunks_exact_mut(VOCABULARY).zip(targets) {
            for &(token, probability) in *target {
                dense[token as usize] = probability;
            }
        }
        let dense = Tensor::from_vec(dense, (targets.len(), VOCABULARY), &Device::Cpu)?;
        let own = targets.iter().map(|target| {
            let terms = target.iter().map(|(_, q)| q * q.ln());
            terms.sum::<f32>()
        });
        let own = Tensor::new(own.collect::<Vec<_>>(), &Device::Cpu)?;
        Ok((own - (dense * rows)?.sum(1)?)?)
    }

    fn without_gradients(&self) -> Box<dyn Student + '_> {
        Box::new(self.clone())
    }

    fn save(&self, folder: &Path) -> Result<(), TrainError> {
        files::write(&folder.join("adapter_config.json"), b"{\"toy\": true}")?;
        let bytes: Vec<u8> = self.bits().into_iter().flat_map(u32::to_le_bytes).collect();
        files::write(&folder.join("adapter_model.safetensors"), &bytes)
    }
}
