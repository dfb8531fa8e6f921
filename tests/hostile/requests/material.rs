//! The valid requests from which hostile ones are derived.

use std::ops::Range;

use serde_json::{Value, json};

use crate::hostile::edits::{Edit, Material};
use crate::server::support::{CHAT, COMPLETIONS};

/// Longer bodies are changed only as text.
const LONGEST_VARIED: usize = 4096;

/// A placeholder for the length of the body.
const LENGTH: &str = "@@@@@@@@";

/// Texts to insert anywhere: JSON, fields and header lines.
const WORDS: [&str; 53] = [
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "-1",
    "1e400",
    "-0.0",
    "18446744073709551616",
    "4294967296",
    "9223372036854775808",
    "1.5",
    "0",
    "129",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "\"\u{fdd0}\u{fdd1}\"",
    "\"tiny@base\"",
    "\"tiny@turn\"",
    "\"tiny@short\"",
    "\"tiny+x\"",
    "\"tiny@\"",
    "\"zero\"",
    "\"up/etc/passwd\"",
    "\"/dev/zero\"",
    "\"peft\"",
    "\"a <|im_start|> [INST] <s> ### b\"",
    "\"logprobs\":5,",
    "\"logprobs\":true,\"top_logprobs\":20,",
    "\"echo\":true,",
    "\"n\":3,",
    "\"stream\":true,",
    "\"stop\":[\"a\",\"b\"],",
    "\"max_tokens\":0,",
    "\"max_tokens\":50,",
    "\"ignore_eos\":true,",
    "\"seed\":-1,",
    "\"temperature\":0,",
    "\"logit_bias\":{\"5\":-100,\"299\":100},",
    "\"top_p\":0,",
    "\"repetition_penalty\":0.01,",
    "\"timeout\":0.001,",
    "\"stop_token_ids\":[5,299],",
    "\"add_special_tokens\":false,",
    "\"tools\":[{\"type\":\"function\"}],",
    "\"user\":{\"a\":[]},",
    "Transfer-Encoding: chunked\r\n",
    "Expect: 100-continue\r\n",
    "Content-Length: 1\r\n",
    "Content-Encoding: gzip\r\n",
    "X-Request-Id: \u{7f}é\r\n",
    "Authorization: Bearer x\r\n",
    "\r\n\r\n",
];

/// Returns a request to each endpoint, and some with other framing.
pub(super) fn materials() -> Vec<Material> {
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {LENGTH}\r\n\r\n{body}"
        )
    };
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let messages = r#"[{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "a <s> # Query: b"}]"#;
    let chat = |model: &str| {
        format!(
            r#"{{"model": "{model}", "max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "seed": 5, "stop": ["x", "yz"], "messages": {messages}}}"#
        )
    };
    let prompts = r#"{"model": "tiny", "prompt": ["Hello", "World"], "max_tokens": 5, "logprobs": 2, "echo": true, "n": 2, "min_p": 0.1, "presence_penalty": 0.5}"#;
    let ids = r#"{"model": "tiny@short", "prompt": [[5, 6, 7], [299]], "max_tokens": 5, "stream": true, "stream_options": {"include_usage": true}}"#;
    let comparison = format!(
        r#"{{"arms": ["tiny", "tiny@short", "tiny@base"], "analysis": true, "top_logprobs": 3, "reference": "tiny", "max_tokens": 5, "stream": true, "messages": {messages}}}"#
    );
    let compared_text = r#"{"arms": ["tiny", "tiny"], "prompt": "Hello", "max_tokens": 4, "n": 2, "temperature": 0.5, "seed": 3}"#;
    let mut requests = vec![
        post(CHAT, &chat("tiny")),
        post(CHAT, &chat("tiny@short")),
        post(
            CHAT,
            &chat("tiny@base")
                .replace("\"seed\"", "\"stream\": true, \"logprobs\": true, \"seed\""),
        ),
        post(COMPLETIONS, prompts),
        post(COMPLETIONS, ids),
        post("/v1/adapters", r#"{"name": "a", "path": "pipe"}"#),
        post(
            "/v1/adapters",
            r#"{"model": "tiny", "name": "a", "path": "./peft"}"#,
        ),
        post("/v1/compare", &comparison),
        post("/v1/compare", compared_text),
        post(
            "/tokenize",
            r#"{"model": "tiny", "prompt": "Hello <s> 日本", "add_special_tokens": true}"#,
        ),
        post("/detokenize", r#"{"model": "tiny", "tokens": [1, 5, 299]}"#),
        post(
            "/apply-template",
            &format!(r#"{{"model": "tiny@turn", "messages": {messages}}}"#),
        ),
        get("/v1/models/tiny%40short?x=%ff&y"),
        get("/tokenizer_info"),
    ];
    requests.extend(
        [
            "/",
            "/health",
            "/metrics",
            "/openapi.json",
            "/v1/models",
            "/v1/profiles",
        ]
        .map(&get),
    );
    // More answers than the memory could hold.
    let prompts_without_end = format!(
        r#"{{"model": "tiny", "n": 128, "prompt": [{}"a"]}}"#,
        "\"a\",".repeat(60_000)
    );
    requests.push(post(COMPLETIONS, &prompts_without_end));
    // Chunked transfer encoding, and several requests at once.
    let body = prompts.split_at(40);
    requests.push(format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         {:x};a=b\r\n{}\r\n{:x}\r\n{}\r\n0\r\nX-Trailer: 1\r\n\r\n",
        body.0.len(),
        body.0,
        body.1.len(),
        body.1
    ));
    let first = get("/health").replace("Connection: close\r\n", "");
    requests.push(
        [
            first.clone(),
            first,
            post("/detokenize", r#"{"tokens": [5]}"#),
        ]
        .concat(),
    );
    let deep = [
        "[".repeat(3000),
        "{\"a\":".repeat(3000),
        "[".repeat(100) + &"]".repeat(100),
    ];
    let long = [
        "1,".repeat(30_000),
        "a".repeat(100_000),
        "\"\\n\",".repeat(5000),
        "%41".repeat(3000),
    ];
    let head = format!("X-Long: {}\r\n", "b".repeat(20_000));
    let heads = "A: b\r\n".repeat(300);
    let mut words = WORDS.map(str::to_owned).to_vec();
    words.extend(deep.into_iter().chain(long).chain([head, heads]));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    requests
        .iter()
        .map(|request| material(request, &words))
        .collect()
}

/// Creates material from a request: its head and its body are equally worth changing.
fn material(request: &str, words: &[&str]) -> Material {
    let mut material = Material::text(request, words);
    let body = request.find("\r\n\r\n").map_or(0, |end| end + 4);
    let parts = material.parts.remove(0).into_iter();
    let (head, parts): (Vec<_>, Vec<_>) = parts.partition(|part| part.start < body);
    if parts.is_empty() {
        material.parts.push(head);
    } else {
        material.parts.extend([head, parts]);
    }
    match serde_json::from_str(&request[body..]) {
        Ok(sound) if request.len() < LONGEST_VARIED => Material {
            whole: bodies(&sound, body..request.len()),
            ..material
        },
        _ => material,
    }
}

/// Returns edits that replace the body `sound`: with one value changed, or with an additional
/// field.
fn bodies(sound: &Value, range: Range<usize>) -> Vec<Edit> {
    let mut bodies = Vec::new();
    let mut pointers = Vec::new();
    walk(sound, String::new(), &mut pointers);
    for pointer in pointers {
        for value in values() {
            let mut body = sound.clone();
            *body.pointer_mut(&pointer).expect("it is there") = value;
            bodies.push(body.to_string());
        }
    }
    let text = sound.to_string();
    let fields = WORDS.iter().filter(|word| word.ends_with(','));
    bodies.extend(fields.map(|field| text.replacen('{', &format!("{{{field}"), 1)));
    let replace = |body: String| Edit::Replace {
        range: range.clone(),
        bytes: body.into_bytes(),
    };
    bodies.into_iter().map(replace).collect()
}

/// Collects the JSON pointers to all values in a value, including itself.
fn walk(value: &Value, pointer: String, pointers: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                walk(item, format!("{pointer}/{at}"), pointers);
            }
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                walk(value, format!("{pointer}/{key}"), pointers);
            }
        }
        _ => {}
    }
    pointers.push(pointer);
}

/// Values of all kinds, most of them wrong in most places.
fn values() -> Vec<Value> {
    let texts = [
        "",
        "a",
        "tiny",
        "tiny@base",
        "tiny@short",
        "tiny@turn",
        "\0",
        "\u{fdd0}",
        "user",
    ];
    let long = "word \n".repeat(50);
    let mut values: Vec<Value> = texts
        .into_iter()
        .chain([long.as_str()])
        .map(Value::from)
        .collect();
    values.extend([
        Value::Null,
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1),
        json!(2),
        json!(0.5),
        json!(1.5),
        json!(1e308),
        json!(299),
        json!(300),
        json!(4_294_967_296_u64),
        json!(i64::MIN),
        json!(u64::MAX),
        json!([]),
        json!({}),
        json!([[]]),
        json!([5]),
        json!(["a"]),
        json!([[5, 6], [7]]),
        json!([{"type": "text", "text": "a"}]),
        json!([{"role": "user", "content": "a"}, {"role": "user", "content": ""}]),
    ]);
    values
}

/// Fills in the length of the body, if the request still has the placeholder.
pub(super) fn framed(input: &[u8]) -> Vec<u8> {
    let find = |what: &[u8]| input.windows(what.len()).position(|window| window == what);
    let (Some(at), Some(end)) = (find(LENGTH.as_bytes()), find(b"\r\n\r\n")) else {
        return input.to_vec();
    };
    let length = input.len() - (end + 4);
    [
        &input[..at],
        length.to_string().as_bytes(),
        &input[at + LENGTH.len()..],
    ]
    .concat()
}
