//! The packed weights of a model.

use std::cell::RefCell;
use std::io;

use crate::{DecoderSpec, ModelError, Part, Weight, Weights};
use incant_gguf::Gguf;
use incant_kernels::pool::Pool;
use incant_kernels::{ActivationForms, Arena, Format, Matrix};

/// The memory that the weights of a model take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of all weights as stored in memory.
    pub resident: usize,
    /// The part of them that every step reads, in bytes: all weights except an embedding that
    /// is not the LM head too.
    pub streamed: usize,
    /// The part of them that was dequantized to f32, in bytes.
    pub dequantized: usize,
    /// The size of the dequantized matrices in the file, in bytes.
    pub dequantized_from: usize,
}

/// The weights of a decoder.
#[derive(Debug)]
pub struct PackedWeights {
    /// The token embedding, if it is not the LM head too.
    pub embedding: Option<Matrix>,
    /// The LM head; also the embedding if they are tied.
    pub lm_head: Matrix,
    /// The weights of the norm before the LM head.
    pub output_norm: Vec<f32>,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// The forms of activations that the matrices take.
    pub forms: LayerForms,
}

/// The forms in which matrices need activations, which may differ between layers.
#[derive(Clone, Copy, Debug)]
pub struct LayerForms {
    /// For the q, k and v projections, gate and up.
    pub normed: ActivationForms,
    /// For the output projection of attention.
    pub attended: ActivationForms,
    /// For the down projection.
    pub inner: ActivationForms,
    /// For the LM head.
    pub lm_head: ActivationForms,
}

/// The weights of one layer.
#[derive(Debug)]
pub struct Layer {
    /// Weights of the norm before attention.
    pub attention_norm: Option<Vec<f32>>,
    /// Query, key and value.
    pub projections: [Projection; 3],
    /// Attention's output projection.
    pub output: Matrix,
    /// Weights of the norm after attention.
    pub post_attention_norm: Option<Vec<f32>>,
    /// Weights of the norm before the feed-forward part.
    pub feed_forward_norm: Option<Vec<f32>>,
    /// The gate projection.
    pub gate: Matrix,
    /// The up projection.
    pub up: Matrix,
    /// The down projection.
    pub down: Matrix,
    /// Weights of the norm after the feed-forward part.
    pub post_feed_forward_norm: Option<Vec<f32>>,
}

/// A projection, with the bias and norm that some architectures add.
#[derive(Debug)]
pub struct Projection {
    /// The weights.
    pub matrix: Matrix,
    /// The bias.
    pub bias: Option<Vec<f32>>,
    /// The norm of each head, or of all heads together if it has their whole width.
    pub norm: Option<Vec<f32>>,
}

impl PackedWeights {
    /// Packs the weights of `gguf`.
    pub fn load(gguf: &Gguf, spec: &DecoderSpec, pool: &Pool) -> Result<PackedWeights, ModelError> {
        let tensors = Weights::new(gguf, spec);
        tensors.check(|kind| Format::of(kind).is_some())?;
        let arena = RefCell::default();
        let matrix = |weight: Weight<'_>| matrix(gguf, weight, pool, &arena);
        let embedding = if spec.tied_embeddings {
            None
        } else {
            Some(matrix(tensors.embedding()?)?)
        };
        let layers = (0..spec.layers.len())
            .map(|index| Layer::load(&tensors, spec, index, &matrix))
            .collect::<Result<Vec<Layer>, _>>()?;
        let lm_head = matrix(tensors.lm_head()?)?;
        let forms = LayerForms {
            normed: ActivationForms::of(layers.iter().flat_map(|layer| {
                let projections = layer.projections.iter().map(|p| &p.matrix);
                projections.chain([&layer.gate, &layer.up])
            })),
            attended: ActivationForms::of(layers.iter().map(|layer| &layer.output)),
            inner: ActivationForms::of(layers.iter().map(|layer| &layer.down)),
            lm_head: ActivationForms::of([&lm_head]),
        };
        Ok(PackedWeights {
            embedding,
            lm_head,
            forms,
            output_norm: vector(tensors.output_norm()?)?,
            layers,
        })
    }

    /// Returns the matrix whose rows are the token embeddings.
    pub fn embedding(&self) -> &Matrix {
        self.embedding.as_ref().unwrap_or(&self.lm_head)
    }

    /// The memory that the weights take.
    pub fn footprint(&self) -> Footprint {
        let layers = self.layers.iter().flat_map(Layer::matrices);
        let streamed = layers.chain([&self.lm_head]).map(Matrix::bytes).sum();
        Footprint {
            resident: streamed + self.embedding.as_ref().map_or(0, Matrix::bytes),
            streamed,
            ..Footprint::default()
        }
    }
}

impl Layer {
    fn load(
        tensors: &Weights<'_>,
        spec: &DecoderSpec,
        index: usize,
        matrix: &impl Fn(Weight<'_>) -> Result<Matrix, ModelError>,
    ) -> Result<Layer, ModelError> {
        let matrix = |part| matrix(tensors.layer(index, part)?);
        let vector = |part| vector(tensors.layer(index, part)?);
        let vector_if = |wanted: bool, part| wanted.then(|| vector(part)).transpose();
        let projection = |part, bias, norm: Option<Part>| {
            Ok::<_, ModelError>(Projection {
                matrix: matrix(part)?,
                bias: vector_if(spec.qkv_bias, bias)?,
                norm: norm
                    .filter(|_| spec.qk_norm.is_some())
                    .map(vector)
                    .transpose()?,
            })
        };
        Ok(Layer {
            projections: [
                projection(Part::Query, Part::QueryBias, Some(Part::QueryNorm))?,
                projection(Part::Key, Part::KeyBias, Some(Part::KeyNorm))?,
                projection(Part::Value, Part::ValueBias, None)?,
            ],
            attention_norm: vector_if(spec.pre_norms, Part::AttentionNorm)?,
            output: matrix(Part::Output)?,
            post_attention_norm: vector_if(spec.post_norms, Part::PostAttentionNorm)?,
            feed_forward_norm: vector_if(spec.pre_norms, Part::FeedForwardNorm)?,
            gate: matrix(Part::Gate)?,
            up: matrix(Part::Up)?,
            down: matrix(Part::Down)?,
            post_feed_forward_norm: vector_if(spec.post_norms, Part::PostFeedForwardNorm)?,
        })
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let rest = [&self.output, &self.gate, &self.up, &self.down];
        self.projections.iter().map(|p| &p.matrix).chain(rest)
    }
}

/// Packs a matrix with all threads, and releases the file's pages of it on the way: at no time
/// are both copies in memory.
fn matrix(
    gguf: &Gguf,
    weight: Weight<'_>,
    pool: &Pool,
    arena: &RefCell<Arena>,
) -> Result<Matrix, ModelError> {
    let matrix = Matrix::pack_in(
        &mut arena.borrow_mut(),
        pool,
        weight.kind,
        weight.rows,
        weight.columns,
        weight.data,
        |bytes| gguf.release(bytes),
    );
    Ok(matrix
        .map_err(|source| no_memory(weight, source))?
        .expect("the weights' types were checked"))
}

/// A norm's weight or a bias.
fn vector(weight: Weight<'_>) -> Result<Vec<f32>, ModelError> {
    let matrix = Matrix::pack(weight.kind, 1, weight.columns, weight.data)
        .map_err(|source| no_memory(weight, source))?
        .expect("the weights' types were checked");
    let mut values = vec![0.0; weight.columns];
    matrix.row(0, &mut values);
    Ok(values)
}

fn no_memory(weight: Weight<'_>, source: io::Error) -> ModelError {
    ModelError::Memory {
        name: weight.name.to_string(),
        source,
    }
}
