//! How chats are sampled where a request does not say: by the profile, then by the model's
//! manifest, then as OpenAI does it.

use std::collections::BTreeMap;
use std::sync::Arc;

use incant::engine::EngineOptions;
use incant::profile::{Profile, SamplingDefaults};
use incant::runtime::{LoadOptions, Model, Runtime};
use incant::server::ServeOptions;
use serde_json::{Value, json};

use crate::build::{Builder, Item};
use crate::reference::tiny::{Tiny, written};
use crate::server_support::Server;
use crate::support::subjects;

const PROFILE: &str = r##"+++
name = "short"
title = "Short"
description = "For tests"
language = "en"
shots = 0
version = 1
markers = ["# Query:", "# Answer:"]

[sampling]
max_tokens = 5

[guidance]
weight = 0.5
+++
{% block prefix %}
Answer well.

{% endblock %}
{% block turns %}
{% for message in messages %}
# {{ "Query" if message.role == "user" else "Answer" }}:
{{ message.content }}

{% endfor %}
# Answer:
{% endblock %}
"##;

/// A server of two models whose manifests set `max_tokens` and `top_p`: `tuned` has a chat
/// template, `raw` has none.
fn server() -> Server {
    let profile = Profile::parse("short.jinja", PROFILE).expect("a sound profile");
    let profiles = BTreeMap::from([("short".to_owned(), Arc::new(profile))]);
    let load = |name: &str, file: Builder| {
        let model = Tiny {
            layers: 1,
            ..Tiny::llama()
        };
        let file = written(&model.continued(file, &model.tensors()));
        let options = LoadOptions {
            backend: subjects::native().backend.clone(),
            kv_memory: Some(16 << 20),
            engine: EngineOptions::default(),
            context: Some(160),
            profiles: profiles.clone(),
            default_profile: Some("short".to_owned()),
            sampling: SamplingDefaults {
                max_tokens: Some(3),
                top_p: Some(0.9),
                ..SamplingDefaults::default()
            },
            prefix_folder: None,
        };
        Arc::new(Model::load(name, file.path(), &options).expect("a sound model"))
    };
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let templated = Builder::new().with("tokenizer.chat_template", Item::Str(template));
    let models = vec![load("tuned", templated), load("raw", Builder::new())];
    let runtime = Runtime::new();
    runtime.loaded(models);
    Server::over(Arc::new(runtime), ServeOptions::default())
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
    // The model's, for its own template; the request comes first.
    assert_eq!(tokens("tuned", json!({})), 3);
    assert_eq!(tokens("tuned", json!({"max_tokens": 2})), 2);
    // The profile comes before the model.
    assert_eq!(tokens("raw", json!({})), 5);
    assert_eq!(tokens("tuned@short", json!({})), 5);
    // Plain text is nobody's.
    assert!(tokens("tuned@base", json!({})) > 5);
    let body = json!({"model": "tuned", "prompt": "Hello", "ignore_eos": true});
    let completed = server.complete(body);
    assert_eq!(completed["usage"]["completion_tokens"], 16);
}

#[test]
fn the_list_of_models_shows_how_each_arm_chats() {
    let models = server().get("/v1/models").expect(200);
    let shown = |id: &str| {
        let models = models["data"].as_array().expect("a list");
        let model = models.iter().find(|model| model["id"] == id);
        let model = model.expect("it is listed");
        json!([model["sampling"], model["guidance"], model["language"]])
    };
    let of_model = json!({"top_p": 0.9, "max_tokens": 3});
    assert_eq!(shown("tuned"), json!([of_model, null, null]));
    // A profile in place of the template has its own defaults alone.
    let of_profile = json!({"max_tokens": 5});
    assert_eq!(shown("tuned@short"), json!([of_profile, 0.5, "en"]));
    assert_eq!(shown("tuned@base"), json!([{}, null, null]));
    let both = json!({"top_p": 0.9, "max_tokens": 5});
    for id in ["raw", "raw@short"] {
        assert_eq!(shown(id), json!([both, 0.5, "en"]), "{id}");
    }
    assert_eq!(shown("raw@turn"), json!([of_profile, null, null]));
}
