//! The AdamW optimizer with moments that can be saved, gradient clipping, and the learning rate
//! schedule (linear warmup, cosine decay).

use candle_core::{Tensor, Var};

use super::TrainError;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with the usual β1 = 0.9, β2 = 0.999, ε
/// = 1e-8.
#[derive(Debug)]
pub struct AdamW {
    weight_decay: f64,
    /// Steps made so far.
    steps: usize,
    moments: Vec<Moments>,
}

/// Adam's moments of a variable: running means of its gradient and of the squared gradient.
#[derive(Clone, Debug)]
pub struct Moments {
    /// The mean of the gradient.
    pub first: Tensor,
    /// The mean of the squared gradient.
    pub second: Tensor,
}

impl AdamW {
    /// A new optimizer with zero moments.
    ///
    /// # Errors
    /// The allocation failed.
    pub fn new(variables: &[(String, Var)], weight_decay: f64) -> Result<AdamW, TrainError> {
        let moments = variables.iter().map(|(_, variable)| {
            let zero = variable.as_tensor().zeros_like()?;
            Ok(Moments {
                first: zero.clone(),
                second: zero,
            })
        });
        let moments = moments.collect::<Result<_, TrainError>>()?;
        Ok(AdamW::resumed(weight_decay, 0, moments))
    }

    /// An optimizer that continues after `steps` steps with the saved `moments`.
    pub fn resumed(weight_decay: f64, steps: usize, moments: Vec<Moments>) -> AdamW {
        AdamW {
            weight_decay,
            steps,
            moments,
        }
    }

    /// The moments of each variable.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Updates each variable by one step.
    ///
    /// # Errors
    /// A computation failed.
    pub fn step(
        &mut self,
        variables: &[(String, Var)],
        gradients: &[Tensor],
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        self.steps += 1;
        let [scale1, scale2] =
            [BETA1, BETA2].map(|beta| 1.0 / (1.0 - beta.powi(self.steps as i32)));
        let places = variables.iter().zip(gradients).zip(&mut self.moments);
        for (((_, variable), gradient), moments) in places {
            moments.first = ((&moments.first * BETA1)? + (gradient * (1.0 - BETA1))?)?;
            moments.second = ((&moments.second * BETA2)? + (gradient.sqr()? * (1.0 - BETA2))?)?;
            let mean = (&moments.first * scale1)?;
            let spread = ((&moments.second * scale2)?.sqrt()? + EPSILON)?;
            let kept = (variable.as_tensor() * (1.0 - learning_rate * self.weight_decay))?;
            variable.set(&(kept - ((mean / spread)? * learning_rate)?)?)?;
        }
        Ok(())
    }
}

/// The Euclidean norm of all gradients together.
///
/// # Errors
/// A computation failed.
pub fn norm(gradients: &[Tensor]) -> Result<f64, TrainError> {
    let squares = gradients.iter().map(|gradient| {
        let sum = gradient.sqr()?.sum_all()?;
        sum.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()
    });
    let squares = squares.collect::<candle_core::Result<Vec<f64>>>()?;
    Ok(squares.iter().sum::<f64>().sqrt())
}

/// Gradient clipping: scales gradients whose global norm is `norm` so that it is at most
/// `longest`.
///
/// # Errors
/// A computation failed.
pub fn clip(gradients: &mut [Tensor], norm: f64, longest: f64) -> Result<(), TrainError> {
    if norm > longest {
        for gradient in gradients {
            *gradient = (&*gradient * (longest / norm))?;
        }
    }
    Ok(())
}

/// The learning rate schedule: linear warmup to the peak, then cosine decay to zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps of linear warmup.
    pub warmup: usize,
    /// Total steps.
    pub steps: usize,
}

impl Schedule {
    /// A schedule whose warmup is a share of the steps.
    pub fn new(peak: f64, warmup_share: f64, steps: usize) -> Schedule {
        Schedule {
            peak,
            warmup: (steps as f64 * warmup_share).round() as usize,
            steps,
        }
    }

    /// The learning rate of a step, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let falling = (self.steps - self.warmup).max(1) as f64;
        let done = (step - self.warmup) as f64 / falling;
        self.peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::{Optimizer, ParamsAdamW};

    use super::*;

    fn variables() -> Vec<(String, Var)> {
        let a = Var::from_slice(&[0.5f32, -1.0, 2.0, 0.0], (2, 2), &Device::Cpu).unwrap();
        let b = Var::from_slice(&[3.0f32, -0.25], 2, &Device::Cpu).unwrap();
        vec![("a".to_owned(), a), ("b".to_owned(), b)]
    }

    /// A function of all variables without symmetries.
    fn loss(variables: &[(String, Var)]) -> Tensor {
        let (a, b) = (&variables[0].1, &variables[1].1);
        let product = a.matmul(&b.unsqueeze(1).unwrap()).unwrap();
        let square = product.sqr().unwrap().sum_all().unwrap();
        (square + a.exp().unwrap().sum_all().unwrap()).unwrap()
    }

    fn values(variables: &[(String, Var)]) -> Vec<Vec<f32>> {
        let rows = variables
            .iter()
            .map(|(_, variable)| variable.flatten_all().unwrap().to_vec1().unwrap());
        rows.collect()
    }

    #[test]
    fn it_makes_the_steps_that_candles_own_makes() {
        let (ours, theirs) = (variables(), variables());
        let mut optimizer = AdamW::new(&ours, 0.1).unwrap();
        let mut other = candle_nn::AdamW::new(
            theirs
                .iter()
                .map(|(_, variable)| variable.clone())
                .collect(),
            ParamsAdamW {
                lr: 0.03,
                weight_decay: 0.1,
                ..ParamsAdamW::default()
            },
        )
        .unwrap();
        for _ in 0..20 {
            let store = loss(&ours).backward().unwrap();
            let gradients: Vec<Tensor> = ours
                .iter()
                .map(|(_, variable)| store.get(variable).unwrap().clone())
                .collect();
            optimizer.step(&ours, &gradients, 0.03).unwrap();
            other.backward_step(&loss(&theirs)).unwrap();
            assert_eq!(values(&ours), values(&theirs));
        }
        assert_ne!(values(&ours), values(&variables()));
    }

    #[test]
    fn gradients_are_clipped_together() {
        let gradient = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let mut gradients = [gradient(&[3.0, 0.0]), gradient(&[0.0, -4.0, 0.0])];
        let length = norm(&gradients).unwrap();
        assert_eq!(length, 5.0);
        clip(&mut gradients, length, 6.0).unwrap();
        assert_eq!(norm(&gradients).unwrap(), 5.0);
        clip(&mut gradients, length, 1.0).unwrap();
        let found = gradients[1].to_dtype(DType::F64).unwrap();
        let found = found.to_vec1::<f64>().unwrap();
        assert!((found[1] + 0.8).abs() < 1e-7, "{found:?}");
        assert!((norm(&gradients).unwrap() - 1.0).abs() < 1e-7);
    }

    #[test]
    fn the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() {
        let schedule = Schedule::new(8.0, 0.2, 20);
        let found: Vec<f64> = [0, 1, 3, 4, 8, 12, 16].map(|step| schedule.at(step)).into();
        // Of 16 decaying steps: 0, a quarter, half, three quarters.
        let expected = [
            2.0,
            4.0,
            8.0,
            8.0,
            6.828_427_124_746_19,
            4.0,
            1.171_572_875_253_81,
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-12,
                "{found} is not {expected}"
            );
        }
        assert!(schedule.at(19) > 0.0 && schedule.at(19) < 0.1);
        assert_eq!(Schedule::new(8.0, 0.0, 1).at(0), 8.0);
    }
}
