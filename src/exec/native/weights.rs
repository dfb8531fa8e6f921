//! The packed weights of a model.

use std::cell::RefCell;
use std::io;

use super::Pool;
use super::shared::SharedSlice;
use crate::exec::{ExecError, Footprint};
use crate::gguf::Gguf;
use crate::kernels::{Arena, Format, Kind, Matrix};
use crate::model::{DecoderSpec, Part, Weight, Weights as Tensors};

#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Option<Matrix>,
    /// The LM head; also the embedding if they are tied.
    pub(crate) head: Matrix,
    pub(crate) output_norm: Vec<f32>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) kinds: Kinds,
}

/// The forms in which matrices need activations, which may differ between layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kinds {
    /// For the q, k and v projections, gate and up.
    pub(crate) normed: Kind,
    /// For the output projection of attention.
    pub(crate) attended: Kind,
    /// For the down projection.
    pub(crate) inner: Kind,
    /// For the LM head.
    pub(crate) wanted: Kind,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Option<Vec<f32>>,
    /// Query, key and value.
    pub(crate) projections: [Projection; 3],
    pub(crate) output: Matrix,
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    pub(crate) feed_forward_norm: Option<Vec<f32>>,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
    pub(crate) post_feed_forward_norm: Option<Vec<f32>>,
}

/// A projection, with the bias and norm that some architectures add.
#[derive(Debug)]
pub(crate) struct Projection {
    pub(crate) matrix: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
    /// The norm of each head, or of all heads together if it has their whole width.
    pub(crate) norm: Option<Vec<f32>>,
}

impl Weights {
    /// Packs the weights of `gguf`.
    pub(crate) fn load(gguf: &Gguf, spec: &DecoderSpec, pool: &Pool) -> Result<Weights, ExecError> {
        let tensors = Tensors::new(gguf, spec);
        tensors.check(|kind| Format::of(kind).is_some())?;
        let arena = RefCell::default();
        let matrix = |weight: Weight<'_>| matrix(gguf, weight, pool, &arena);
        let embedding = match spec.tied_head {
            true => None,
            false => Some(matrix(tensors.embedding()?)?),
        };
        let layers = (0..spec.layers.len())
            .map(|index| Layer::load(&tensors, spec, index, &matrix))
            .collect::<Result<Vec<Layer>, _>>()?;
        let head = matrix(tensors.head()?)?;
        let kinds = Kinds {
            normed: Kind::of(layers.iter().flat_map(|layer| {
                let projections = layer.projections.iter().map(|p| &p.matrix);
                projections.chain([&layer.gate, &layer.up])
            })),
            attended: Kind::of(layers.iter().map(|layer| &layer.output)),
            inner: Kind::of(layers.iter().map(|layer| &layer.down)),
            wanted: Kind::of([&head]),
        };
        Ok(Weights {
            embedding,
            head,
            kinds,
            output_norm: vector(tensors.output_norm()?)?,
            layers,
        })
    }

    /// Returns the matrix whose rows are the token embeddings.
    pub(crate) fn embedding(&self) -> &Matrix {
        self.embedding.as_ref().unwrap_or(&self.head)
    }

    /// The memory that the weights take.
    pub(crate) fn footprint(&self) -> Footprint {
        let layers = self.layers.iter().flat_map(Layer::matrices);
        let streamed = layers.chain([&self.head]).map(Matrix::bytes).sum();
        Footprint {
            resident: streamed + self.embedding.as_ref().map_or(0, Matrix::bytes),
            streamed,
            ..Footprint::default()
        }
    }
}

impl Layer {
    fn load(
        tensors: &Tensors<'_>,
        spec: &DecoderSpec,
        index: usize,
        matrix: &impl Fn(Weight<'_>) -> Result<Matrix, ExecError>,
    ) -> Result<Layer, ExecError> {
        let matrix = |part| matrix(tensors.layer(index, part)?);
        let vector = |part| vector(tensors.layer(index, part)?);
        let vector_if = |wanted: bool, part| wanted.then(|| vector(part)).transpose();
        let projection = |part, bias, norm: Option<Part>| {
            Ok::<_, ExecError>(Projection {
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
) -> Result<Matrix, ExecError> {
    let packing = Matrix::for_packing(
        weight.kind,
        weight.rows,
        weight.columns,
        weight.data,
        &mut arena.borrow_mut(),
    );
    let no_room =
        |error: io::Error| ExecError::Memory(format!("no memory for '{}': {error}", weight.name));
    let (mut matrix, packing) = packing
        .map_err(no_room)?
        .expect("the weights' types were checked");
    let panels = matrix.panels();
    let (memory, panel_bytes) = matrix.memory_mut();
    let memory = SharedSlice::from(memory);
    // Enough panels for each task to be worth claiming.
    let at_once = (1 << 18) / panel_bytes.max(1) + 1;
    pool.run(|crew| {
        crew.each(panels.div_ceil(at_once), |task| {
            let panels = task * at_once..panels.min((task + 1) * at_once);
            for panel in panels.clone() {
                let bytes = panel * panel_bytes..(panel + 1) * panel_bytes;
                // SAFETY: each panel is packed once.
                packing.panel(panel, unsafe { memory.slice_mut(bytes) });
            }
            gguf.release(packing.source_of(panels));
        });
    });
    // Releases the pages of the file that two tasks shared.
    gguf.release(weight.data);
    Ok(matrix)
}

/// Loads the weight of a norm, or a bias.
fn vector(weight: Weight<'_>) -> Result<Vec<f32>, ExecError> {
    let matrix = Matrix::pack(weight.kind, 1, weight.columns, weight.data)
        .map_err(|error| ExecError::Memory(error.to_string()))?
        .expect("the weights' types were checked");
    let mut values = vec![0.0; weight.columns];
    matrix.row(0, &mut values);
    Ok(values)
}
