//! Verifies that a file in the cache is the one that its manifest describes.

use std::fs::File;
use std::io::{self, Read};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::{Cache, CatalogError, Checksum, Manifest, Progress, size_of};
use incant_gguf::digests::Digests;
use incant_gguf::mmap::FileIdentity;

/// The folder in the cache that stores the checksums of its files.
const CHECKSUMS: &str = ".checksums";

pub(super) fn holds(
    cache: &Cache,
    manifest: &Manifest,
    progress: &dyn Progress,
) -> Result<bool, CatalogError> {
    let path = cache.path(&manifest.name);
    if size_of(&path)? != Some(manifest.size) {
        return Ok(false);
    }
    let found = File::open(&path)
        .and_then(|file| known_checksum(cache, &manifest.name, file, progress))
        .map_err(CatalogError::io("read", &path))?;
    let mut sources = manifest.sources.iter();
    Ok(sources.any(|source| source.sha256().to_string() == found))
}

/// Returns the file's SHA-256 in hexadecimal digits, cached from one run to the next.
fn known_checksum(
    cache: &Cache,
    name: &str,
    mut file: File,
    progress: &dyn Progress,
) -> io::Result<String> {
    let digests = Digests {
        folder: &cache.dir.join(CHECKSUMS),
        algorithm: "sha256",
    };
    let before = FileIdentity::of(&file);
    if let Some(known) = before.and_then(|file| digests.recall(&file)) {
        return Ok(known);
    }
    progress.note(&format!("checking the file of {name}, which is here"));
    let began = SystemTime::now();
    let found = checksum(&mut file)?.to_string();
    if let Some(before) = before {
        // If the folder cannot be written, the file is checked again the next time.
        let _ = digests.remember(before, began, FileIdentity::of(&file), found.clone());
    }
    Ok(found)
}

/// Returns the SHA-256 of `file` from its current position on.
pub(super) fn checksum(file: &mut File) -> io::Result<Checksum> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Checksum::from_bytes(hasher.finalize().into())),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
