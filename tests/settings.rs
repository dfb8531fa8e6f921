//! Settings in GGUF files: a number may have any type that holds it, and a value of another
//! type is refused by name. It never counts as absent.

use incant::gguf::{Gguf, Value, ValueType};
use incant::lora::Lora;
use incant::model::arch;
use incant::text::{Special, Tokenizer};

use crate::build::{Builder, Item};
use crate::lora::fixtures::Fixture;
use crate::reference::tiny::{self, Tiny};

/// The types of numbers, and their ids in a file.
const NUMBERS: [(ValueType, u32); 10] = [
    (ValueType::U8, 0),
    (ValueType::I8, 1),
    (ValueType::U16, 2),
    (ValueType::I16, 3),
    (ValueType::U32, 4),
    (ValueType::I32, 5),
    (ValueType::F32, 6),
    (ValueType::U64, 10),
    (ValueType::I64, 11),
    (ValueType::F64, 12),
];

/// Encodes a number in a type, if the type holds it exactly.
fn encoded(number: f64, kind: ValueType) -> Option<Vec<u8>> {
    macro_rules! exact {
        ($type:ty) => {
            (number as $type as f64 == number).then(|| (number as $type).to_le_bytes().to_vec())
        };
    }
    match kind {
        ValueType::U8 => exact!(u8),
        ValueType::I8 => exact!(i8),
        ValueType::U16 => exact!(u16),
        ValueType::I16 => exact!(i16),
        ValueType::U32 => exact!(u32),
        ValueType::I32 => exact!(i32),
        ValueType::F32 => exact!(f32),
        ValueType::U64 => exact!(u64),
        ValueType::I64 => exact!(i64),
        ValueType::F64 => exact!(f64),
        ValueType::Bool | ValueType::String | ValueType::Array => None,
    }
}

/// Returns everything that is read from a file's metadata, as text, or the error.
fn read(builder: &Builder) -> Result<String, String> {
    let file = tiny::written(builder);
    let gguf = Gguf::open(file.path()).map_err(|error| error.to_string())?;
    let spec = arch::read(&gguf).map_err(|error| error.to_string())?;
    let tokenizer = Tokenizer::from_gguf(&gguf).map_err(|error| error.to_string())?;
    let facts = [tokenizer.bos(), tokenizer.eos()];
    let adds = [
        tokenizer.adds_bos(),
        tokenizer.adds_eos(),
        tokenizer.adds_space_prefix(),
    ];
    let ids = tokenizer.encode("<s> a few words", Special::Parse);
    Ok(format!("{spec:?} {facts:?} {adds:?} {ids:?}"))
}

/// Models that use every setting that is read.
fn models() -> Vec<Builder> {
    let models = Tiny::all().map(|model| {
        let arch = model.architecture;
        let key = |key: &str| format!("{arch}.{key}");
        let file = Builder::new()
            .with("general.alignment", Item::U32(32))
            .with("tokenizer.ggml.add_bos_token", Item::Bool(false))
            .with("tokenizer.ggml.add_eos_token", Item::Bool(true))
            .with("tokenizer.ggml.add_space_prefix", Item::Bool(false))
            .with("tokenizer.ggml.pre", Item::Str("default"))
            .with("tokenizer.ggml.eot_token_id", Item::U32(2))
            .with("tokenizer.ggml.eom_token_id", Item::U32(2))
            .with(&key("expert_count"), Item::U32(0));
        let file = model.continued(file, &model.tensors());
        let width = model.head_dim as u32;
        let file = file
            .set(&key("attention.key_length"), Item::U32(width))
            .set(&key("attention.value_length"), Item::U32(width));
        let file = match model.rope_dims {
            None => file.with(&key("rope.dimension_count"), Item::U32(width)),
            Some(_) => file,
        };
        match arch {
            "llama" => file
                .with(&key("rope.scaling.type"), Item::Str("linear"))
                .with(&key("rope.scaling.factor"), Item::F32(2.0))
                .with(&key("rope.scale_linear"), Item::F32(4.0))
                .with(&key("rope.scaling.attn_factor"), Item::F32(0.5))
                .with(&key("attention.sliding_window"), Item::U32(64)),
            "gemma3" => file
                .with(&key("rope.freq_base_swa"), Item::F32(5000.0))
                .with(&key("final_logit_softcapping"), Item::F32(30.0))
                .with(&key("attention.sliding_window_pattern"), Item::U32(3)),
            "gemma2" => {
                let count = (model.layers as u64).to_le_bytes();
                let listed = [&[7, 0, 0, 0], &count[..], &vec![1; model.layers]].concat();
                file.with(
                    &key("attention.sliding_window_pattern"),
                    Item::Raw(9, listed),
                )
            }
            "granite" => file.with(&key("rope.scaling.finetuned"), Item::Bool(true)),
            _ => file,
        }
    });
    models.into()
}

/// Calls `each` with every setting of a file that is read: its key and its value.
fn settings(builder: &Builder, mut each: impl FnMut(&str, Value<'_>)) {
    let file = tiny::written(builder);
    let gguf = Gguf::open(file.path()).expect("a good file");
    for (key, _, value) in gguf.metadata().iter() {
        each(key, value);
    }
}

fn number(value: Value<'_>) -> Option<f64> {
    match value {
        Value::Unsigned(value) => Some(value as f64),
        Value::Signed(value) => Some(value as f64),
        Value::F32(value) => Some(value.into()),
        Value::F64(value) => Some(value),
        Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
    }
}

#[test]
fn a_number_means_the_same_in_whatever_type_holds_it() {
    let mut tried = 0;
    for model in models() {
        let expected = read(&model).expect("a good file");
        let mut same = |key: &str, item: Item<'_>| {
            let shown = format!("{key}: {item:?}");
            assert_eq!(
                read(&model.clone().set(key, item)),
                Ok(expected.clone()),
                "{shown}"
            );
            tried += 1;
        };
        settings(&model, |key, value| match value {
            Value::Bool(value) => {
                for (kind, id) in NUMBERS {
                    if !is_float(kind) {
                        let bytes = encoded(value.into(), kind).expect("every type has 0 and 1");
                        same(key, Item::Raw(id, bytes));
                    }
                }
            }
            Value::Array(array) if array.kind() != ValueType::String => {
                let count = (array.len() as u64).to_le_bytes();
                let numbers: Vec<f64> = array
                    .iter()
                    .map(|value| number(value).unwrap_or_else(|| value.boolean().unwrap().into()))
                    .collect();
                let whole_only = array.kind() == ValueType::Bool;
                for (kind, id) in NUMBERS {
                    if whole_only && is_float(kind) {
                        continue;
                    }
                    let elements: Option<Vec<_>> = numbers
                        .iter()
                        .map(|&number| encoded(number, kind))
                        .collect();
                    if let Some(elements) = elements {
                        let bytes = [&id.to_le_bytes(), &count[..], &elements.concat()].concat();
                        same(key, Item::Raw(9, bytes));
                    }
                }
            }
            value => {
                for (kind, id) in NUMBERS {
                    let bytes = number(value).and_then(|number| encoded(number, kind));
                    if let Some(bytes) = bytes {
                        same(key, Item::Raw(id, bytes));
                    }
                }
            }
        });
    }
    assert!(tried > 500, "{tried}");
}

fn is_float(kind: ValueType) -> bool {
    matches!(kind, ValueType::F32 | ValueType::F64)
}

#[test]
fn a_setting_of_another_type_is_refused_by_its_name() {
    let long = 40_000_001u64.to_le_bytes().to_vec();
    for model in models() {
        let refused = |key: &str, item: Item<'_>| {
            let shown = format!("{key}: {item:?}");
            let told = read(&model.clone().set(key, item)).expect_err(&shown);
            assert!(
                told.contains(&format!("`{key}` should be a")),
                "{shown}: {told}"
            );
            assert!(told.contains(" but is "), "{shown}: {told}");
        };
        settings(&model, |key, value| {
            match value {
                Value::String(_) => {
                    refused(key, Item::Strs(&["7"]));
                    refused(key, Item::U32(7));
                    refused(key, Item::Bool(true));
                    return;
                }
                Value::Array(array) if array.kind() == ValueType::String => {
                    refused(key, Item::I32s(&[1]));
                    refused(key, Item::Str("a"));
                    return;
                }
                _ => {}
            }
            refused(key, Item::Str("7"));
            refused(key, Item::Strs(&["7"]));
            if let Value::Array(_) = value {
                return;
            }
            refused(key, Item::I32s(&[7, 7, 7]));
            match value {
                Value::Bool(_) => {
                    refused(key, Item::U32(2));
                    refused(key, Item::I8(-1));
                    refused(key, Item::F32(1.0));
                }
                Value::F32(_) => {
                    refused(key, Item::Bool(true));
                    // No f32 equals this integer, or is this large.
                    refused(key, Item::Raw(10, long.clone()));
                    refused(key, Item::Raw(12, 1e300f64.to_le_bytes().to_vec()));
                }
                _ => {
                    refused(key, Item::Bool(true));
                    refused(key, Item::F32(64.5));
                    refused(key, Item::F32(f32::NAN));
                    refused(key, Item::I8(-1));
                }
            }
        });
    }
}

#[test]
fn the_type_and_what_was_expected_are_told() {
    let model = Tiny::llama();
    let file = model.file(&model.tensors());
    let told = |key: &str, item| {
        let told = read(&file.clone().set(key, item)).expect_err("it is refused");
        told.split_once("metadata key ")
            .expect("names a key")
            .1
            .to_owned()
    };
    assert_eq!(
        told(
            "llama.rope.freq_base",
            Item::Raw(10, 40_000_001u64.to_le_bytes().into())
        ),
        "`llama.rope.freq_base` should be a 32-bit floating-point number but is the integer \
         40000001 (u64)"
    );
    assert_eq!(
        told("llama.rope.dimension_count", Item::F32(16.5)),
        "`llama.rope.dimension_count` should be an unsigned 32-bit integer but is the number \
         16.5 (f32)"
    );
    assert_eq!(
        told("tokenizer.ggml.add_bos_token", Item::U16(2)),
        "`tokenizer.ggml.add_bos_token` should be a boolean but is the integer 2 (u16)"
    );
}

/// The scale of an adapter's file, which a converter may write as an integer.
#[test]
fn an_adapters_alpha_may_have_any_type_that_holds_it() {
    let fixture = Fixture::new("llama");
    let folder = tempfile::tempdir().expect("a folder");
    let with = |item: Item<'_>| {
        let path = folder.path().join("adapter.gguf");
        let ones = |count: usize| 1f32.to_le_bytes().repeat(count);
        let file = Builder::new()
            .with("general.type", Item::Str("adapter"))
            .with("adapter.type", Item::Str("lora"))
            .with("general.architecture", Item::Str("llama"))
            .with("adapter.lora.alpha", item)
            .tensor("blk.0.attn_q.weight.lora_a", &[32, 4], 0, ones(128))
            .tensor("blk.0.attn_q.weight.lora_b", &[4, 32], 0, ones(128));
        std::fs::write(&path, file.bytes()).expect("written");
        let lora = Lora::read(&path, &fixture.spec()).map_err(|error| error.to_string())?;
        let scale = lora.additions().next().expect("there is one").2.scale;
        Ok::<_, String>(scale)
    };
    assert_eq!(with(Item::F32(8.0)), Ok(2.0));
    for (kind, id) in NUMBERS {
        let bytes = encoded(8.0, kind).expect("every type has 8");
        assert_eq!(with(Item::Raw(id, bytes)), Ok(2.0), "{}", kind.name());
    }
    for item in [Item::Str("8"), Item::Bool(true), Item::F32s(&[8.0])] {
        let told = with(item).expect_err("it is refused");
        assert!(
            told.contains("`adapter.lora.alpha` should be a 32-bit"),
            "{told}"
        );
    }
}
