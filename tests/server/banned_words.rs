//! Banned words, for a tokenizer that inserts a space before texts.

use std::collections::BTreeMap;
use std::sync::Arc;

use incant::runtime::{LoadOptions, Model, Runtime};
use incant::server::ServeOptions;
use serde_json::{Value, json};

use crate::reference::tiny::Tiny;
use crate::server::support::{Server, with};
use crate::support::fixtures::load_options;

#[test]
fn a_word_is_barred_with_a_space_before_it_and_without() {
    let tiny = Tiny::llama();
    let file = tiny.written(&tiny.tensors());
    let options = LoadOptions {
        kv_memory: Some(1 << 20),
        profiles: BTreeMap::new(),
        ..load_options()
    };
    let model = Model::load("tiny", file.path(), &options).expect("a sound model");
    let tokenizer = Arc::clone(model.tokenizer());
    assert!(tokenizer.adds_space_prefix());
    let runtime = Runtime::new();
    runtime.loaded(vec![Arc::new(model)]);
    let server = Server::over(Arc::new(runtime), ServeOptions::default());

    // Only these three tokens can be chosen: a space, and the letters of the words.
    let id = |piece: &str| {
        let ids = 0..tokenizer.vocab_size() as u32;
        let mut found = ids.filter(|&id| tokenizer.piece(id) == Some(piece));
        found.next().expect("a token")
    };
    let (space, letter, other) = (id("▁"), id("q"), id("z"));
    let ask = |more: &Value| -> String {
        let body = json!({"model": "tiny", "prompt": "hello", "max_tokens": 16, "seed": 1,
            "temperature": 2, "allowed_token_ids": [space, letter, other]});
        let answer = server.complete(with(body, more));
        answer["choices"][0]["text"]
            .as_str()
            .expect("a text")
            .to_owned()
    };
    let free = ask(&json!({}));
    assert!(free.contains('q') && free.contains('z'), "{free:?}");
    let barred = ask(&json!({"bad_words": ["q"]}));
    assert!(!barred.contains('q') && barred.contains('z'), "{barred:?}");
    // A word of several tokens is banned as a sequence; also if it is given with the space.
    for word in ["qz", " qz"] {
        for seed in 0..8 {
            let text = ask(&json!({"bad_words": [word], "seed": seed}));
            assert!(!text.contains("qz"), "{word:?}: {text:?}");
        }
    }
}
