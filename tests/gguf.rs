//! GGUF files: contents of valid ones, and errors of invalid ones.

use std::path::PathBuf;

use incant::gguf::{Gguf, GgufError, TensorType, Value, ValueType};
use proptest::prelude::*;

use crate::build::{Builder, Item};

/// A small valid file: some metadata and two tensors.
fn sample() -> Builder {
    Builder::new()
        .with("general.architecture", Item::Str("llama"))
        .with("general.alignment", Item::U32(64))
        .with("llama.block_count", Item::U16(3))
        .with("llama.rope.freq_base", Item::F32(10_000.0))
        .with("llama.expert_used_count", Item::I8(-2))
        .with("tokenizer.ggml.add_bos_token", Item::Bool(true))
        .with("tokenizer.ggml.tokens", Item::Strs(&["a", "", "▁the"]))
        .with("tokenizer.ggml.scores", Item::F32s(&[0.0, -1.0, -2.5]))
        .with("tokenizer.ggml.token_type", Item::I32s(&[1, 3, -6]))
        .tensor("token_embd.weight", &[32, 3], 8, vec![7; 3 * 34])
        .tensor("output_norm.weight", &[2], 0, vec![9; 8])
}

fn open(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("written");
    Gguf::open(file.path())
}

/// Returns the error for `bytes`, without the path.
fn refusal(bytes: &[u8]) -> String {
    let error = open(bytes).expect_err("the file is bad");
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line:?}");
    let path = error.path().display().to_string();
    line.strip_prefix(&format!("{path}: "))
        .expect("the line begins with the path")
        .to_owned()
}

#[test]
fn metadata_and_tensors_come_back_as_written() {
    for version in [2, 3] {
        let gguf = open(&sample().version(version).bytes()).unwrap();
        assert_eq!(gguf.version(), version);
        let metadata = gguf.metadata();
        assert_eq!(metadata.str("general.architecture").unwrap(), "llama");
        assert_eq!(metadata.u32("llama.block_count").unwrap(), 3);
        assert_eq!(metadata.u64("llama.block_count").unwrap(), 3);
        assert_eq!(metadata.i32("llama.expert_used_count").unwrap(), -2);
        assert_eq!(metadata.f32("llama.rope.freq_base").unwrap(), 10_000.0);
        assert!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap());
        let tokens: Vec<_> = metadata.strs("tokenizer.ggml.tokens").unwrap().collect();
        assert_eq!(tokens, ["a", "", "▁the"]);
        assert_eq!(
            metadata.f32s("tokenizer.ggml.scores").unwrap(),
            [0.0, -1.0, -2.5]
        );
        assert_eq!(
            metadata.i32s("tokenizer.ggml.token_type").unwrap(),
            [1, 3, -6]
        );

        let names: Vec<_> = gguf.tensors().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["token_embd.weight", "output_norm.weight"]);
        let embedding = gguf.tensor("token_embd.weight").unwrap();
        assert_eq!(embedding.info.shape, [3, 32], "outermost first");
        assert_eq!(embedding.info.kind, TensorType::Q8_0);
        assert_eq!(embedding.info.elements(), 96);
        assert_eq!(embedding.info.offset % 64, 0, "the alignment key counts");
        assert_eq!(embedding.data, [7; 3 * 34]);
        assert_eq!(gguf.find("output_norm.weight").unwrap().data, [9; 8]);
    }
}

#[test]
fn entries_are_listed_in_file_order() {
    let gguf = open(&sample().bytes()).unwrap();
    let entries: Vec<_> = gguf.metadata().iter().collect();
    assert_eq!(entries.len(), 9);
    assert_eq!(
        entries[2],
        ("llama.block_count", ValueType::U16, Value::Unsigned(3))
    );
    let (key, kind, value) = entries[6];
    assert_eq!((key, kind), ("tokenizer.ggml.tokens", ValueType::Array));
    assert_eq!(value.array().unwrap().len(), 3);
}

#[test]
fn a_missing_or_mistyped_key_is_named() {
    let gguf = open(&sample().bytes()).unwrap();
    let metadata = gguf.metadata();
    let ends = |error: GgufError, end: &str| {
        let line = error.to_string();
        assert!(line.ends_with(end), "{line}");
    };
    ends(
        metadata.u32("llama.context_length").unwrap_err(),
        "metadata key `llama.context_length` is missing",
    );
    ends(
        metadata.u32("general.architecture").unwrap_err(),
        "metadata key `general.architecture` should be an unsigned 32-bit integer but is the string \"llama\"",
    );
    ends(
        metadata.u32("llama.expert_used_count").unwrap_err(),
        "should be an unsigned 32-bit integer but is the integer -2 (i8)",
    );
    ends(
        metadata.f32s("tokenizer.ggml.tokens").unwrap_err(),
        "should be an array of 32-bit floating-point numbers but is an array of 3 string",
    );
    ends(
        gguf.tensor("output.weight").unwrap_err(),
        "tensor `output.weight` is missing",
    );
    // An absent key gives `None`, another type is an error.
    assert_eq!(metadata.get_u32("llama.context_length").unwrap(), None);
    ends(
        metadata.get_u32("general.architecture").unwrap_err(),
        "metadata key `general.architecture` should be an unsigned 32-bit integer but is the string \"llama\"",
    );
    assert!(gguf.find("output.weight").is_none());
}

#[test]
fn other_files_are_not_taken_for_gguf() {
    assert_eq!(
        refusal(b""),
        "not a GGUF file (it begins with nothing: it is empty)"
    );
    assert_eq!(
        refusal(b"PK\x03\x04 and more"),
        r#"not a GGUF file (it begins with "PK\x03\x04")"#
    );
    assert_eq!(
        refusal(&sample().version(1).bytes()),
        "GGUF version 1 is not supported (only 2 and 3 are)"
    );
    assert_eq!(
        refusal(&sample().version(3u32.swap_bytes()).bytes()),
        "a big-endian GGUF file; only little-endian files are supported"
    );
    let missing = Gguf::open(&PathBuf::from("no/such/model.gguf")).unwrap_err();
    let line = missing.to_string();
    assert!(
        line.starts_with("no/such/model.gguf: No such file"),
        "{line}"
    );
    let folder = Gguf::open(&std::env::temp_dir()).unwrap_err();
    assert!(folder.to_string().ends_with("is a directory"), "{folder}");
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let whole = sample().bytes();
    for len in 0..whole.len() {
        let line = refusal(&whole[..len]);
        assert!(
            line.contains("cut off")
                || line.contains("more than its")
                || line.contains("past the end")
                || line.contains("not a GGUF"),
            "{len}: {line}"
        );
    }
    open(&whole).expect("the whole file is good");
}

#[test]
fn counts_beyond_the_file_are_refused_before_they_are_believed() {
    let mut tensors = sample().bytes();
    tensors[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refusal(&tensors).contains("claims 18446744073709551615 tensors"));
    let mut entries = sample().bytes();
    entries[16..24].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert!(refusal(&entries).contains("claims 1099511627776 metadata entries"));
    let array = Builder::new().with(
        "a",
        Item::Raw(9, [&4u32.to_le_bytes()[..], &[0xff; 8]].concat()),
    );
    assert!(refusal(&array.bytes()).contains("elements for metadata key `a`"));
    let string = Builder::new().with("a", Item::Raw(8, vec![0xff; 8]));
    assert!(refusal(&string.bytes()).contains("cut off: metadata key `a`"));
}

#[test]
fn contradictions_in_the_metadata_are_refused() {
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    let cases: Vec<(Builder, &str)> = vec![
        (
            Builder::new().with("a\n", Item::Raw(9, nested)),
            r"metadata key `a\n` is an array of arrays, which is not supported",
        ),
        (
            Builder::new().with("a", Item::Raw(77, vec![0; 8])),
            "metadata key `a` has the unknown value type 77",
        ),
        (
            Builder::new().with("a", Item::Raw(7, vec![2])),
            "metadata key `a` holds a boolean that is neither 0 nor 1",
        ),
        (
            Builder::new()
                .with("a", Item::U32(1))
                .with("a", Item::U32(1)),
            "metadata key `a` appears twice",
        ),
        (
            Builder::new().with(
                "a",
                Item::Raw(8, [&1u64.to_le_bytes()[..], b"\xff"].concat()),
            ),
            "metadata key `a` is not valid UTF-8",
        ),
        (
            Builder::new().with("general.alignment", Item::U32(24)),
            "general.alignment is 24, not a power of two from 8 on",
        ),
        (
            Builder::new().with("general.alignment", Item::U32(4)),
            "general.alignment is 4, not a power of two from 8 on",
        ),
        (
            Builder::new().with("general.alignment", Item::U32(0)),
            "general.alignment is 0, not a power of two from 8 on",
        ),
        (
            Builder::new().with("general.alignment", Item::Str("x")),
            "metadata key `general.alignment` should be an unsigned integer but is the string \"x\"",
        ),
    ];
    for (file, message) in cases {
        assert_eq!(refusal(&file.bytes()), message);
    }
}

#[test]
fn impossible_tensors_are_refused() {
    let one = |dims: &[u64], kind, data: Vec<u8>| Builder::new().tensor("t", dims, kind, data);
    let cases: Vec<(Builder, &str)> = vec![
        (
            one(&[4], 5, vec![0; 32]),
            "tensor `t` has the unknown type 5; a newer format, or a corrupt file",
        ),
        (
            one(&[1, 1, 1, 1, 1], 0, vec![0; 4]),
            "tensor `t` has 5 dimensions (at most 4 are possible)",
        ),
        (
            one(&[40], 8, vec![0; 64]),
            "tensor `t` has rows of 40 elements, not a multiple of the 32 in a block of Q8_0",
        ),
        (
            one(&[4, 0], 0, vec![]),
            "tensor `t` has a dimension of 0 in its shape [4, 0]",
        ),
        (
            one(&[1 << 40, 1 << 40], 0, vec![]),
            "tensor `t` is impossibly large: [1099511627776, 1099511627776] elements of F32",
        ),
        (
            one(&[1 << 61], 0, vec![]),
            "tensor `t` is impossibly large: [2305843009213693952] elements of F32",
        ),
        (
            one(&[4], 0, vec![0; 15]),
            "tensor `t` reaches past the end of the file (16 bytes at offset 0 of the data, which has 15)",
        ),
        (
            one(&[4], 0, vec![0; 16]).tensor("t", &[4], 0, vec![0; 16]),
            "tensor `t` appears twice",
        ),
        (
            one(&[4], 0, vec![0; 64]).tensor_at("u", &[4], 0, 8),
            "tensor `u` begins at offset 8, not a multiple of the alignment 32",
        ),
        (
            one(&[16], 0, vec![0; 64]).tensor_at("u", &[4], 0, 32),
            "tensor `u` overlaps tensor `t`",
        ),
        (
            one(&[4], 0, vec![0; 16]).tensor_at("u", &[4], 0, u64::MAX - 31),
            "tensor `u` reaches past the end of the file (16 bytes at offset 18446744073709551584 of the data, which has 16)",
        ),
    ];
    for (file, message) in cases {
        assert_eq!(refusal(&file.bytes()), message);
    }
}

#[test]
fn a_vocabulary_without_tensors_opens() {
    let bytes = Builder::new().with("a", Item::Str("b")).bytes();
    assert_eq!(open(&bytes).unwrap().tensors().len(), 0);
}

#[test]
fn the_fingerprint_follows_every_byte() {
    let print = |builder: &Builder| open(&builder.bytes()).unwrap().fingerprint();
    assert_eq!(print(&sample()), print(&sample()));
    assert_ne!(
        print(&sample()),
        print(&sample().with("general.name", Item::Str("other")))
    );
    // Larger than the part that is hashed at once.
    const LEN: usize = 12 << 20;
    let with = |at: Option<usize>| {
        let mut data = vec![1; LEN];
        if let Some(at) = at {
            data[at] = 2;
        }
        print(&Builder::new().tensor("t", &[3 << 20], 0, data))
    };
    let same = with(None);
    for at in [0, 100_000, 6_000_001, (8 << 20) - 1, 8 << 20, LEN - 1] {
        assert_ne!(same, with(Some(at)), "byte {at} counts");
    }
}

/// Two models of the same size that differ in a few weights, such as two merged adapters, must
/// not find each other's saved prefixes; and a cached hash is not used for a file that was
/// rewritten, even with the same size and modification time.
#[cfg(unix)]
#[test]
fn a_fingerprint_is_remembered_for_exactly_this_file() {
    use std::os::unix::fs::MetadataExt;
    use std::time::{Duration, Instant};

    let folder = tempfile::tempdir().expect("a folder");
    let (path, known) = (
        folder.path().join("model.gguf"),
        folder.path().join("known"),
    );
    let bytes = sample().bytes();
    let entries = || std::fs::read_dir(&known).map_or(0, Iterator::count);
    let now = || {
        Gguf::open(&path)
            .expect("it is good")
            .known_fingerprint(&known)
    };
    let settle = || std::thread::sleep(Duration::from_millis(3100));

    let first = loop {
        let since = Instant::now();
        std::fs::write(&path, &bytes).expect("written");
        let first = now();
        // On a busy machine the time limit may pass before the file is hashed.
        if since.elapsed() < Duration::from_millis(2500) {
            assert_eq!(entries(), 0, "it was written a moment ago");
            break first;
        }
        // The folder may not exist.
        _ = std::fs::remove_dir_all(&known);
    };
    assert_eq!(first, Gguf::open(&path).unwrap().fingerprint());
    settle();
    assert_eq!(now(), first);
    assert_eq!(entries(), 1);

    // The cached hash is used without reading the file again.
    let inode = std::fs::metadata(&path).unwrap().ino();
    let kept = std::fs::read_dir(&known).unwrap().next().unwrap().unwrap();
    assert!(
        kept.file_name()
            .to_str()
            .unwrap()
            .ends_with(&format!("-{inode:x}.json"))
    );
    let text = std::fs::read_to_string(kept.path()).unwrap();
    let hex: String = first.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(kept.path(), text.replace(&hex, &"ab".repeat(32))).unwrap();
    assert_eq!(now(), [0xab; 32]);

    // Same size, inode and modification time, but other bytes.
    let written = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &other).expect("written in place");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(written).expect("a time can be set");
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    let changed = now();
    assert_eq!(changed, Gguf::open(&path).unwrap().fingerprint());
    assert!(changed != first && changed != [0xab; 32]);

    // An unreadable entry is treated as absent, and is replaced.
    settle();
    for broken in ["", "{}", "not JSON"] {
        std::fs::write(kept.path(), broken).unwrap();
        assert_eq!(now(), changed);
        let text = std::fs::read_to_string(kept.path()).unwrap();
        assert!(text.contains("blake3"), "{text}");
    }
    assert_eq!(entries(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whichever bytes of a valid file are overwritten, opening it either fails with one line
    /// or gives metadata and tensors that can all be read.
    #[test]
    fn a_mutated_file_never_panics(
        edits in prop::collection::vec((0usize..700, any::<u8>()), 1..6),
        wide in prop::option::of((0usize..700, prop::sample::select(vec![0, 1, u64::MAX, 1 << 62, 1 << 32, 255]))),
        keep in 0usize..2000,
    ) {
        let mut bytes = sample().bytes();
        for (at, byte) in edits {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        if let Some((at, value)) = wide
            && let Some(place) = bytes.get_mut(at..at + 8)
        {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes.truncate(keep.max(24));
        match open(&bytes) {
            Err(error) => prop_assert!(!error.to_string().contains(['\n', '\x1b'])),
            Ok(gguf) => {
                for (_, _, value) in gguf.metadata().iter() {
                    if let Some(array) = value.array() {
                        prop_assert_eq!(array.iter().count(), array.len());
                    }
                }
                for info in gguf.tensors() {
                    let view = gguf.tensor(&info.name).expect("listed");
                    prop_assert_eq!(view.data.len(), info.len);
                }
                gguf.fingerprint();
            }
        }
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(rest in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&b"GGUF\x03\0\0\0"[..], &rest].concat();
        let _ = open(&bytes);
    }
}
