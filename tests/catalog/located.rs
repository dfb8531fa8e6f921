//! The files in the cache, and the names under which they are found.

use std::fs;
use std::path::{Path, PathBuf};

use incant::catalog::CatalogError;

use super::{file_bytes, manifest, manifest_text, place};
use crate::support;

#[test]
fn models_are_located_by_name_and_by_file() {
    let bytes = file_bytes();
    let place = place(None);
    let cache = &place.cache;
    let locate = |name: &str| cache.locate(name);

    let error = locate("gemma-3-270m").expect_err("it is not here");
    assert!(
        error.to_string().contains("`incant pull gemma-3-270m`"),
        "{error}"
    );
    let error = locate("smollm2-135m").expect_err("there is none");
    let CatalogError::Unknown { known, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(
        known,
        &["smollm2-135m-instruct", "gemma-3-270m"],
        "the nearest first"
    );

    // A file put there by hand, without a manifest.
    fs::create_dir(&cache.dir).expect("the cache is new");
    fs::write(cache.dir.join("tiny.gguf"), &bytes).expect("it is writable");
    let by_name = locate("tiny").expect("it is here");
    assert_eq!((by_name.name.as_str(), by_name.manifest), ("tiny", None));

    // A file with a manifest.
    let manifest = manifest(&bytes);
    cache
        .keep(&manifest, &manifest_text(&bytes))
        .expect("it is kept");
    assert_eq!(
        locate("tiny").expect("it is here").manifest,
        Some(manifest.clone())
    );
    assert_eq!(
        cache.catalogue().expect("it can look").manifests.last(),
        Some(&manifest)
    );

    // The wrong file.
    fs::write(cache.dir.join("tiny.gguf"), &bytes[1..]).expect("it is writable");
    let error = locate("tiny").expect_err("it is another file").to_string();
    assert!(
        error.contains("299999 bytes where the model tiny has 300000"),
        "{error}"
    );

    // A file by its path.
    let elsewhere: PathBuf = place.dir.path().join("My Model.Q4_0.gguf");
    fs::write(&elsewhere, b"GGUF").expect("it is writable");
    let path = elsewhere.display().to_string();
    let by_path = locate(&path).expect("it is there");
    assert_eq!(
        (by_path.name.as_str(), by_path.path),
        ("My Model.Q4_0", elsewhere)
    );
    let error = locate("nothing-here.gguf")
        .expect_err("it is not there")
        .to_string();
    assert!(error.contains("nothing-here.gguf"), "{error}");
    let folder = place.dir.path().display().to_string();
    let error = locate(&folder).expect_err("it is a folder").to_string();
    assert!(error.contains("is not a file"), "{error}");
}

#[test]
fn a_damaged_manifest_in_the_cache_is_named() {
    let place = place(None);
    fs::create_dir(&place.cache.dir).expect("the cache is new");
    fs::write(place.cache.dir.join("odd.toml"), "name = 1").expect("it is writable");
    let error = place
        .cache
        .locate("odd")
        .expect_err("it cannot be read")
        .to_string();
    assert!(error.contains("odd.toml"), "{error}");
}

#[test]
fn the_real_models_are_gguf_files_of_the_promised_size() {
    for name in [
        "gemma-3-270m",
        "smollm2-135m-instruct",
        "qwen2.5-coder-0.5b-instruct",
    ] {
        let path: &Path = &support::model(name);
        let mut magic = [0; 4];
        let mut file = fs::File::open(path).expect("it is there");
        std::io::Read::read_exact(&mut file, &mut magic).expect("it is not empty");
        assert_eq!(&magic, b"GGUF", "{name}");
    }
}
