//! Rendering and sampling defaults of chats: the default profile or its variant for the
//! question's language; the sampling defaults of the profile, then of the model's manifest,
//! then OpenAI's. Also where answers end if several arms choose their tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use incant::profile::{Profile, SamplingDefaults};
use incant::runtime::{LoadOptions, Model, Runtime};
use incant::server::ServeOptions;
use serde_json::{Value, json};

use crate::build::{Builder, Item};
use crate::reference::tiny::{Tiny, written};
use crate::server::support::{Server, with};
use crate::support::fixtures::{self, load_options};

/// The settings of the profile `short`.
const SETTINGS: &str = r##"markers = ["# Query:", "# Answer:"]

[sampling]
max_tokens = 5

[guidance]
weight = 0.5"##;

fn short() -> String {
    fixtures::short_profile(SETTINGS)
}

/// The profile `short` under another name, in a language, and possibly as a variant of another.
fn profile(name: &str, language: &str, variant_of: Option<&str>) -> String {
    let variant_of = variant_of.map_or_else(String::new, |of| format!("\nvariant_of = {of:?}"));
    let language = format!("language = {language:?}{variant_of}");
    short()
        .replace("name = \"short\"", &format!("name = {name:?}"))
        .replace("language = \"en\"", &language)
}

/// Parses profiles; returns them by name.
fn profiles(texts: &[String]) -> BTreeMap<String, Arc<Profile>> {
    let parsed = texts
        .iter()
        .map(|text| Profile::parse("a profile", text).expect("a sound profile"));
    parsed
        .map(|profile| (profile.name().to_owned(), Arc::new(profile)))
        .collect()
}

/// Loads a tiny model whose manifest sets `max_tokens` and `top_p`, with these profiles and one
/// of them as the default.
fn load(
    name: &str,
    file: Builder,
    profiles: BTreeMap<String, Arc<Profile>>,
    default_profile: &str,
) -> Arc<Model> {
    let model = Tiny {
        layers: 1,
        ..Tiny::llama()
    };
    let file = written(&model.continued(file, &model.tensors()));
    let options = LoadOptions {
        kv_memory: Some(16 << 20),
        context: Some(1024),
        profiles,
        default_profile: Some(default_profile.to_owned()),
        sampling: SamplingDefaults {
            max_tokens: Some(3),
            top_p: Some(0.9),
            ..SamplingDefaults::default()
        },
        ..load_options()
    };
    Arc::new(Model::load(name, file.path(), &options).expect("a sound model"))
}

fn serve(models: Vec<Arc<Model>>) -> Server {
    let runtime = Runtime::new();
    runtime.loaded(models);
    Server::over(Arc::new(runtime), ServeOptions::default())
}

/// A server of the model `raw` without a chat template.
fn serve_raw(texts: &[String]) -> Server {
    serve(vec![load("raw", Builder::new(), profiles(texts), "short")])
}

/// A server of two models: `tuned` has a chat template, `raw` has none.
fn server() -> Server {
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let templated = Builder::new().with("tokenizer.chat_template", Item::Str(template));
    let short = profiles(&[short()]);
    serve(vec![
        load("tuned", templated, short.clone(), "short"),
        load("raw", Builder::new(), short, "short"),
    ])
}

/// Returns the entry of an arm in the list of models.
fn listed(server: &Server, id: &str) -> Value {
    let models = server.get("/v1/models").expect(200);
    let models = models["data"].as_array().expect("a list");
    let model = models.iter().find(|model| model["id"] == id);
    model.expect("it is listed").clone()
}

#[test]
fn a_models_defaults_are_for_the_way_it_chats_in() {
    let server = server();
    let tokens = |arm: &str, more: Value| {
        let mut body = json!({
            "model": arm, "ignore_eos": true, "guidance": 0, "stop": null,
            "messages": [{"role": "user", "content": "Hello"}],
        });
        let fields = body.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        let answer = server.chat(body);
        answer["usage"]["completion_tokens"]
            .as_u64()
            .expect("a number")
    };
    // The model's defaults, for its own template; the request takes precedence.
    assert_eq!(tokens("tuned", json!({})), 3);
    assert_eq!(tokens("tuned", json!({"max_tokens": 2})), 2);
    // The profile takes precedence over the model.
    assert_eq!(tokens("raw", json!({})), 5);
    assert_eq!(tokens("tuned@short", json!({})), 5);
    // Plain text has no defaults.
    assert!(tokens("tuned@base", json!({})) > 5);
    let body = json!({"model": "tuned", "prompt": "Hello", "ignore_eos": true});
    let completed = server.complete(body);
    assert_eq!(completed["usage"]["completion_tokens"], 16);
}

#[test]
fn the_list_of_models_shows_how_each_arm_chats() {
    let server = server();
    let shown = |id: &str| {
        let model = listed(&server, id);
        json!([model["sampling"], model["guidance"], model["language"]])
    };
    let of_model = json!({"top_p": 0.9, "max_tokens": 3});
    assert_eq!(shown("tuned"), json!([of_model, null, null]));
    // A profile that replaces the template brings only its own defaults.
    let of_profile = json!({"max_tokens": 5});
    assert_eq!(shown("tuned@short"), json!([of_profile, 0.5, "en"]));
    assert_eq!(shown("tuned@base"), json!([{}, null, null]));
    let both = json!({"top_p": 0.9, "max_tokens": 5});
    for id in ["raw", "raw@short"] {
        assert_eq!(shown(id), json!([both, 0.5, "en"]), "{id}");
    }
    assert_eq!(shown("raw@turn"), json!([of_profile, null, null]));
}

/// Returns the profile that answers a first question.
fn asked(server: &Server, model: &str, question: &str) -> Value {
    let body = json!({
        "model": model, "max_tokens": 1, "guidance": 0,
        "messages": [{"role": "user", "content": question}],
    });
    server.chat(body)["profile"].clone()
}

const ENGLISH: &str = "Hello";
const JAPANESE: &str = "こんにちは";

#[test]
fn variants_are_those_that_say_so_whatever_their_names() {
    let server = serve_raw(&[
        short(),
        profile("kurz", "ja", Some("short")),
        profile("kort", "sv", Some("short")),
        profile("other", "ja", Some("kurz")),
        profile("short-ja", "ja", None),
    ]);
    assert_eq!(asked(&server, "raw", ENGLISH), "short");
    assert_eq!(asked(&server, "raw", JAPANESE), "kurz");
    for pinned in ["short", "kort", "short-ja"] {
        assert_eq!(asked(&server, &format!("raw@{pinned}"), JAPANESE), pinned);
    }
    assert_eq!(listed(&server, "raw")["language"], Value::Null);
    assert_eq!(listed(&server, "raw@kurz")["language"], "ja");
    let profiles = server.get("/v1/profiles").expect(200);
    let of = |id: &str| {
        let profiles = profiles["data"].as_array().expect("a list");
        let profile = profiles.iter().find(|profile| profile["id"] == id);
        profile.expect("it is listed")["variant_of"].clone()
    };
    assert_eq!((of("kurz"), of("short")), (json!("short"), Value::Null));
}

#[test]
fn a_conversation_is_shown_under_the_variant_that_answers_it() {
    let variant = profile("kurz", "ja", Some("short")).replace("Answer well.", "Antworte gut.");
    let server = serve_raw(&[short(), variant]);
    let shown = |question: &str| {
        let messages = json!([{"role": "user", "content": question}]);
        let body = json!({"model": "raw", "messages": messages});
        let shown = server.post("/apply-template", &body).expect(200);
        assert_eq!(shown["model"], "raw");
        shown["prompt"].as_str().expect("a text").to_owned()
    };
    assert!(shown(ENGLISH).contains("Answer well."));
    assert!(shown(JAPANESE).contains("Antworte gut."));
}

#[test]
fn without_a_variant_that_fits_the_default_profile_answers() {
    // A profile whose language is only in its name, and one in a language that is not
    // recognized.
    let server = serve_raw(&[
        short(),
        profile("short-ja", "ja", None),
        profile("kort", "sv", Some("short")),
    ]);
    assert_eq!(asked(&server, "raw", JAPANESE), "short");
    assert_eq!(listed(&server, "raw")["language"], "en");
    // The default profile itself is in the language of the question.
    let server = serve_raw(&[
        profile("short", "ja", None),
        profile("kurz", "ja", Some("short")),
    ]);
    assert_eq!(asked(&server, "raw", JAPANESE), "short");
    assert_eq!(listed(&server, "raw")["language"], "ja");
}

#[test]
fn a_users_variant_comes_before_the_built_in_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = profile("own", "ja", Some("instruct"));
    std::fs::write(folder.path().join("own.jinja"), text).expect("it can be written");
    let load = |folder| {
        let profiles = incant::profile::load(folder).expect("sound profiles");
        serve(vec![load("raw", Builder::new(), profiles, "instruct")])
    };
    let built_in = load(None);
    assert_eq!(asked(&built_in, "raw", JAPANESE), "instruct-ja");
    let own = load(Some(folder.path()));
    assert_eq!(asked(&own, "raw", JAPANESE), "own");
    assert_eq!(asked(&own, "raw", ENGLISH), "instruct");
}

/// A profile whose turns begin with a single token.
fn marked() -> String {
    fixtures::profile(
        "marked",
        "Answer in few words.",
        ["?", "!"],
        r#"markers = ["?"]"#,
    )
}

/// An answer ends where any of the arms that choose its tokens would start the next turn.
#[test]
fn the_markers_of_all_who_have_a_say_end_an_answer() {
    let server = serve_raw(&[short(), marked()]);
    // The token for the byte: every answer consists of question marks.
    let question_mark = (3 + u32::from(b'?')).to_string();
    let body = |more: Value| {
        let body = json!({
            "logit_bias": {question_mark.clone(): 100}, "max_tokens": 4, "temperature": 0,
            "messages": [{"role": "user", "content": "Hello"}],
        });
        with(body, &more)
    };
    let said = |arm: &str, more: Value| {
        let answer = server.chat(with(body(more), &json!({"model": arm})));
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().expect("a text");
        let reason = choice["finish_reason"].as_str().expect("a word");
        (text.to_owned(), reason.to_owned())
    };
    let all = ("????".to_owned(), "length".to_owned());
    let ended = (String::new(), "stop".to_owned());
    let mix = |arm: &str, weight: f32| json!({"mix": [{"model": arm, "weight": weight}]});
    assert_eq!(said("raw@short", json!({"guidance": 0})), all);
    assert_eq!(said("raw@marked", json!({})), ended);
    for weight in [0.25, -0.25] {
        assert_eq!(said("raw@short", mix("raw@marked", weight)), ended);
    }
    assert_eq!(said("raw@base", mix("raw@marked", 0.25)), ended);
    let against = json!({"guidance": {"weight": 0.5, "against": "raw@marked"}});
    assert_eq!(said("raw@short", against), ended);
    // Neither an arm without a say (weight 0) nor one without markers ends the answer.
    let mut silent = mix("raw@marked", 0.0);
    silent["guidance"] = json!(0);
    assert_eq!(said("raw@short", silent), all);
    assert_eq!(said("raw@short", mix("raw@base", 0.25)), all);
    // The same arms side by side.
    let arms = json!({"arms": ["raw@short guidance=0", "raw@short mix=raw@marked*0.25"]});
    let report = server.post("/v1/compare", &body(arms)).expect(200);
    let answers = report["prompts"][0]["answers"].as_array().expect("a list");
    let texts = answers.iter().map(|answer| answer["text"].clone());
    assert_eq!(texts.collect::<Vec<_>>(), ["????", ""]);
}
