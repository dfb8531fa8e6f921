use half::f16;

use super::{Format, LANES, Matrix};
use incant_gguf::TensorType;

/// Weights of any type as a file may hold them: random bits, but with scales of a sensible
/// magnitude.
pub(crate) fn random_bytes(kind: TensorType, elements: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut next = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        state >> 33
    };
    let mut number = move || (next() as f32 / (1u64 << 30) as f32 - 1.0, next());
    let mut bytes = Vec::new();
    for _ in 0..elements / kind.block_size() {
        let start = bytes.len();
        bytes.extend((0..kind.type_size()).map(|_| number().1 as u8));
        let mut scale_at = |offset: usize| {
            let scale = f16::from_f32(number().0 * 0.1).to_le_bytes();
            bytes[start + offset..start + offset + 2].copy_from_slice(&scale);
        };
        match kind {
            TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 | TensorType::F16 => scale_at(0),
            TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => {
                scale_at(0);
                scale_at(2);
            }
            TensorType::Q2_K => {
                scale_at(80);
                scale_at(82);
            }
            TensorType::Q3_K => scale_at(108),
            TensorType::Q6_K => scale_at(208),
            TensorType::F32 => {
                let value = number().0.to_le_bytes();
                bytes[start..].copy_from_slice(&value);
            }
            TensorType::BF16 => {
                let value = number().0.to_le_bytes();
                bytes[start..].copy_from_slice(&value[2..]);
            }
            _ => unreachable!("no format"),
        }
    }
    bytes
}

#[test]
fn packing_adds_little_to_the_file() {
    let columns = 2048;
    for kind in TensorType::all() {
        let Some(format) = Format::of(kind) else {
            continue;
        };
        let packed = format.panel_bytes(columns) as f64;
        let file = (LANES * columns) as f64 * kind.bits_per_weight() / 8.0;
        let rare = matches!(kind, TensorType::Q2_K | TensorType::Q3_K);
        assert!(packed <= file * if rare { 2.0 } else { 1.05 }, "{kind}");
    }
}

#[test]
fn rows_past_the_last_are_zeros() {
    let bytes = random_bytes(TensorType::Q8_0, 3 * 64, 1);
    let matrix = Matrix::pack(TensorType::Q8_0, 3, 64, &bytes)
        .unwrap()
        .unwrap();
    assert_eq!(matrix.panels(), 1);
    let header = &matrix.panel(0)[..2 * LANES];
    assert!(header[..6].iter().any(|&byte| byte != 0));
    assert!(header[6..].iter().all(|&byte| byte == 0));
}
