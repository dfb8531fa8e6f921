//! Packed LoRA adapters, and the rows of a batch that they apply to.

use std::ops::Range;
use std::sync::Arc;

use incant_kernels::LowRank;
use incant_model::lora::{Linear, Lora};

#[derive(Debug)]
pub(super) struct Adapter {
    /// Indexed by layer and [`Linear`].
    layers: Vec<[Option<LowRank>; Linear::ALL.len()]>,
    /// The maximum number of intermediate elements of a row, between the two products.
    width: usize,
}

impl Adapter {
    pub(super) fn pack(lora: &Lora) -> Adapter {
        let layer = |index: usize| {
            Linear::ALL.map(|linear| {
                let part = lora.layer(index).get(linear)?;
                Some(LowRank::pack(part.rank, [&part.a, &part.b], part.scale))
            })
        };
        let mut adapter = Adapter {
            layers: (0..lora.layers()).map(layer).collect(),
            width: 0,
        };
        let ends = (0..lora.layers()).flat_map(|layer| {
            let adapter = &adapter;
            let linears = Linear::ALL.into_iter();
            linears.map(move |of| adapter.offset(layer, of) + adapter.width_of(layer, of))
        });
        adapter.width = ends.max().unwrap_or(0);
        adapter
    }

    /// Returns the low-rank addition to a linear layer.
    pub(super) fn get(&self, layer: usize, linear: Linear) -> Option<&LowRank> {
        self.layers[layer][linear as usize].as_ref()
    }

    /// Returns the offset of a linear layer's intermediate elements in a row: the total width
    /// of the linear layers before it that share its input.
    pub(super) fn offset(&self, layer: usize, linear: Linear) -> usize {
        let before = linear
            .sharing_input()
            .iter()
            .take_while(|&&other| other != linear);
        before.map(|&other| self.width_of(layer, other)).sum()
    }

    fn width_of(&self, layer: usize, linear: Linear) -> usize {
        self.get(layer, linear).map_or(0, LowRank::width)
    }
}

/// The adapters of the rows of a batch.
#[derive(Debug, Default)]
pub(super) struct Adapted {
    /// In row order; rows outside of them have no adapter.
    runs: Vec<(Range<usize>, Arc<Adapter>)>,
}

impl Adapted {
    /// Adds rows after all previous ones.
    pub(super) fn push(&mut self, rows: Range<usize>, adapter: &Arc<Adapter>) {
        match self.runs.last_mut() {
            Some((before, same)) if before.end == rows.start && Arc::ptr_eq(same, adapter) => {
                before.end = rows.end;
            }
            _ => self.runs.push((rows, Arc::clone(adapter))),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns all ranges of rows with the same adapter.
    pub(super) fn runs(&self) -> &[(Range<usize>, Arc<Adapter>)] {
        &self.runs
    }

    /// Returns the adapter of a row.
    pub(super) fn of_row(&self, row: usize) -> Option<&Adapter> {
        let run = self.runs.partition_point(|(rows, _)| rows.end <= row);
        let (rows, adapter) = self.runs.get(run)?;
        rows.contains(&row).then_some(&**adapter)
    }

    /// The maximum number of intermediate elements of a row, over all adapters.
    pub(super) fn width(&self) -> usize {
        let widths = self.runs.iter().map(|(_, adapter)| adapter.width);
        widths.max().unwrap_or(0)
    }
}
