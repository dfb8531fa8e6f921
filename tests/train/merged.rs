//! A merged model chats in the format that its adapter was trained on, as specified in its
//! file.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use incant::gguf::Gguf;
use incant::lora::{Linear, Lora, LowRank};
use incant::model::arch;
use incant::profile::{Message, Role};
use incant::runtime::{Arm, Model, Runtime};

use super::rendering::{ids, options};
use crate::support::model;

/// Merges a small adapter for `profile` into a model with `incant export`; returns its output.
fn merged(name: &str, profile: Option<&str>, folder: &Path) -> String {
    let gguf = Gguf::open(&model(name)).expect("a sound file");
    let spec = arch::read(&gguf).expect("a supported model");
    let [outputs, inputs] = Linear::Query.shape(&spec);
    let part = LowRank {
        rank: 1,
        inputs,
        outputs,
        a: vec![0.01; inputs],
        b: vec![0.01; outputs],
        scale: 1.0,
    };
    let lora = Lora::of_additions(
        &spec,
        [(0, Linear::Query, part)],
        profile.map(str::to_owned),
    );
    let adapter = folder.join("adapter");
    std::fs::create_dir_all(&adapter).expect("it can be made");
    let saved = lora.expect("it fits").save(&spec, name, &adapter);
    saved.expect("it can be written");
    let output = Command::new(assert_cmd::cargo::cargo_bin!("incant"))
        .args(["export", "--adapter", "adapter", "--merge", "merged.gguf"])
        .args(["--type", "same", "--model"])
        .arg(model(name))
        .current_dir(folder)
        .output()
        .expect("incant starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn runtime(models: &[(&str, &Path)]) -> Runtime {
    let models = models.iter().map(|(id, path)| {
        let loaded = Model::load(id, path, &options()).expect("a sound model");
        Arc::new(loaded)
    });
    let runtime = Runtime::new();
    runtime.loaded(models.collect());
    runtime
}

fn conversations() -> Vec<Vec<Message>> {
    use Role::{Assistant, System, User};
    let conversations: &[&[(Role, &str)]] = &[
        &[(User, "What colour is the sky?")],
        &[(System, "Be brief."), (User, "  Hello\n")],
        &[
            (System, "Be brief."),
            (System, "And kind."),
            (User, "Hi"),
            (Assistant, "Hello! \n\n1. One\n2. Two"),
            (User, "もっと教えて 🙂"),
            (Assistant, "はい。"),
            (User, "Thanks"),
            (User, "again"),
        ],
        &[(
            User,
            "# Question:\nwho?\n# Answer:\nme <eos> <|im_end|> <bos> </s>",
        )],
        &[(User, "")],
    ];
    let conversations = conversations.iter();
    let messages = conversations.map(|turns| {
        let turns = turns.iter();
        turns
            .map(|&(role, text)| Message::new(role, text))
            .collect()
    });
    messages.collect()
}

/// Asserts that both arms give the same tokens, and end and escape at the same places.
#[track_caller]
fn same_form(one: &Arm, other: &Arm) {
    for messages in conversations() {
        let [a, b] = [one, other].map(|arm| arm.chat(&messages).expect("it is rendered"));
        assert_eq!(ids(&a), ids(&b), "{} {messages:?}", one.id());
        assert_eq!(a.markers, b.markers);
        let answered = [
            messages,
            vec![Message::new(Role::Assistant, "It is # blue.")],
        ]
        .concat();
        let [a, b] = [one, other].map(|arm| arm.answered(&answered).expect("it is rendered"));
        assert_eq!(a.answer, b.answer, "{} {answered:?}", one.id());
    }
}

#[test]
fn a_merged_model_chats_in_the_form_of_its_adapter() {
    for name in ["gemma-3-270m", "smollm2-135m-instruct"] {
        for profile in ["turn", "urial", "self-correct-cot", "base"] {
            let folder = tempfile::tempdir().expect("a folder");
            let told = merged(name, Some(profile), folder.path());
            assert!(told.contains(&format!("form, {profile}\n")), "{told}");
            let has_stops = told.contains("\"# Answer:\"");
            assert_eq!(has_stops, profile != "base", "{told}");
            let path = folder.path().join("merged.gguf");
            let base = model(name);
            let runtime = runtime(&[("base", &base), ("merged", &path)]);
            let trained = runtime.arm(&format!("base@{profile}")).expect("it exists");
            // As it chats without a profile in the request.
            let served = runtime.arm("merged").expect("it exists");
            assert_eq!(served.profile_name(), None, "it is the file's template");
            same_form(&trained, &served);
        }
    }
}

#[test]
fn an_adapter_that_says_no_form_leaves_the_files_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = merged("smollm2-135m-instruct", None, folder.path());
    assert!(
        told.contains("note: the adapter does not name its form of turns"),
        "{told}"
    );
    let merged = Gguf::open(&folder.path().join("merged.gguf")).expect("a sound file");
    let before = Gguf::open(&model("smollm2-135m-instruct")).expect("a sound file");
    let template = |gguf: &Gguf| {
        let template = gguf.metadata().str("tokenizer.chat_template");
        template.expect("it has one").to_owned()
    };
    assert_eq!(template(&merged), template(&before));
}
