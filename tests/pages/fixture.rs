//! A report as the program would write it: three arms, two questions, consistent numbers. The
//! arms' scores of tokens are random, but reproducible.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Each question, with the answer of each arm.
const QUESTIONS: [(&str, [&str; 3]); 2] = [
    (
        "What is the capital of Japan, and what should I see there?",
        [
            "What is the capital of France?\n\nThe capital of Japan is Tokyo. What is the largest city? It is 東京 as well, and it has been so for a long time.",
            "The capital of Japan is Tokyo (東京).\n\nIf you have a day, I would suggest three places:\n\n1. Senso-ji, the oldest temple of the city.\n2. The garden of Shinjuku, best in spring.\n3. Tokyo Tower 🗼 at night.\n\nPlease let me know if you would like more ideas!",
            "Tokyo is Japan's capital. You should see:\n\n- Senso-ji in Asakusa\n- the Meiji shrine and its forest\n- Tokyo Tower 🗼\n\nEnjoy your trip!",
        ],
    ),
    (
        HOSTILE,
        [
            "</script><img src=x onerror=\"document.title='owned'\"><!-- <script>",
            "That is HTML. It would end a script: `</script><img src=x onerror=\"document.title='owned'\">`, and `<!--` would begin a comment.\u{2028}It is only text here.",
            "<b>This</b> is markup; &amp; it stays as it is.",
        ],
    ),
];

/// A text that would do harm if it were treated as markup.
pub(crate) const HOSTILE: &str = "What does </script><!--<script>alert(1)</script> do?";

const ARMS: [&str; 3] = [
    "gemma-3-270m@base",
    "gemma-3-270m@urial",
    "gemma-3-270m+chat",
];
const CLASSES: [&str; 3] = ["unshifted", "marginal", "shifted"];

/// The percentage of one arm's tokens that are shifted under another arm.
const DISTANCE: [[u64; 3]; 3] = [[0, 24, 34], [26, 0, 14], [40, 18, 0]];

/// Creates the report, with an answer of each arm to each question at each temperature.
pub(crate) fn report(temperatures: &[f64]) -> Value {
    let mut chance = Chance(7);
    let prompts: Vec<Value> = QUESTIONS
        .iter()
        .map(|(question, texts)| {
            let answers = texts.iter().enumerate().flat_map(|(arm, text)| {
                let said: Vec<Value> = temperatures
                    .iter()
                    .map(|&temperature| answer(arm, text, temperature, &mut chance))
                    .collect();
                said
            });
            let answers: Vec<Value> = answers.collect();
            json!({"messages": [{"role": "user", "content": question}], "prompt": null, "answers": answers})
        })
        .collect();
    let pairs: Vec<Value> = (0..3)
        .flat_map(|under| (0..3).map(move |arm| (arm, under)))
        .filter(|(arm, under)| arm != under)
        .map(|(arm, under)| pair(&prompts, arm, under))
        .collect();
    let removed = json!([{"arm": 2, "reference": 0, "by": 1, "shifted": 31, "remaining": 12,
        "share": 0.612_903_225_806_451_6, "kl_share": 0.538_217, "interval": [0.5, 0.714_285_7]}]);
    let arms: Vec<Value> = ARMS.iter().map(|id| arm_of(id)).collect();
    json!({
        "format": 1,
        "incant": "0.1.0",
        "created": 1_763_800_000,
        "settings": {
            "reference": 0, "seed": 4_503_599_627_370_497_u64, "temperature": temperatures,
            "top_p": 0.95, "top_k": 0, "min_p": 0.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
            "max_tokens": 256, "n": 1, "analysis": true, "top_logprobs": 5,
            "command": "incant compare gemma-3-270m --adapter chat=./chat --questions questions.jsonl --seed 4503599627370497 --top-p 0.95",
        },
        "arms": arms,
        "prompts": prompts,
        "summary": {"pairs": pairs, "removed": removed},
        "sampling": if temperatures.len() > 1 { sampling(temperatures) } else { json!([]) },
    })
}

fn arm_of(id: &str) -> Value {
    let profile = id.split_once('@').map(|(_, profile)| profile);
    let adapter = id.split_once('+').map(|(_, adapter)| adapter);
    json!({"id": id, "model": "gemma-3-270m", "profile": profile, "adapter": adapter})
}

fn answer(arm: usize, text: &str, temperature: f64, chance: &mut Chance) -> Value {
    let mut tokens: Vec<Value> = pieces(text)
        .iter()
        .enumerate()
        .map(|(position, bytes)| token(arm, bytes, position, chance))
        .collect();
    // The end token has no text.
    tokens.push(token(arm, b"", tokens.len(), chance));
    let completion = tokens.len();
    json!({
        "arm": arm, "index": 0, "temperature": temperature, "text": text, "finish_reason": "stop",
        "usage": {
            "prompt_tokens": 812 - 300 * arm, "completion_tokens": completion,
            "total_tokens": 812 - 300 * arm + completion,
            "prompt_tokens_details": {"cached_tokens": 799 - 300 * arm},
        },
        "tokens": tokens,
    })
}

/// Splits a text into words with the preceding space, and single characters; some characters
/// into bytes.
fn pieces(text: &str) -> Vec<Vec<u8>> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut in_word = false;
    for character in text.chars() {
        let bytes = character.to_string().into_bytes();
        match character {
            '🗼' => pieces.extend([bytes[..2].to_vec(), bytes[2..].to_vec()]),
            '京' => pieces.extend(bytes.chunks(1).map(<[u8]>::to_vec)),
            _ if in_word && character.is_ascii_alphanumeric() => {
                pieces.last_mut().expect("a word has begun").extend(bytes);
            }
            _ => pieces.push(bytes),
        }
        in_word = character.is_ascii_alphanumeric() || character == ' ';
    }
    pieces
}

fn token(arm: usize, bytes: &[u8], position: usize, chance: &mut Chance) -> Value {
    let own = -0.02 - chance.part() * 0.6;
    let others = (0..3).filter(|other| *other != arm);
    let scores: Vec<Value> = others
        .map(|under| {
            // The beginnings of answers differ most.
            let likely = DISTANCE[arm][under] * if position < 8 { 2 } else { 1 };
            let rank = match chance.below(100) {
                drawn if drawn < likely / 2 => 4 + chance.below(60),
                drawn if drawn < likely => 2 + chance.below(2),
                _ => 1,
            };
            let logprob = -0.1 - (rank as f64).ln() * 1.4 - chance.part() * 0.3;
            json!({
                "arm": under, "logprob": logprob, "rank": rank,
                "class": CLASSES[usize::from(rank > 1) + usize::from(rank > 3)],
                "kl": (rank as f64).ln() * 0.6 + chance.part() * 0.1,
                "kl_reverse": (rank as f64).ln() * 0.5 + chance.part() * 0.1,
                "top_logprobs": alternatives(bytes, logprob, rank),
            })
        })
        .collect();
    let id = bytes.iter().fold(bytes.len() as u64, |id, &byte| {
        (id * 31 + u64::from(byte)) % 262_144
    });
    json!({
        "id": id, "token": name(bytes), "bytes": bytes, "logprob": own, "rank": 1,
        "top_logprobs": alternatives(bytes, own, 1), "scores": scores,
    })
}

/// Formats a token like the API.
fn name(bytes: &[u8]) -> String {
    let hexadecimal = || {
        bytes
            .iter()
            .map(|byte| format!("\\x{byte:02x}"))
            .collect::<String>()
    };
    str::from_utf8(bytes).map_or_else(|_| format!("bytes:{}", hexadecimal()), str::to_owned)
}

/// Returns the five most probable tokens, among which the chosen one has this rank.
fn alternatives(bytes: &[u8], logprob: f64, rank: u64) -> Value {
    let others = [" the", "\n", " Sure", "。", " a"];
    let list = (1..=5).map(|place| {
        let bytes = if place == rank {
            bytes
        } else {
            others[place as usize - 1].as_bytes()
        };
        let behind = (1.0 - logprob.exp()).max(0.01).ln() - place as f64;
        let logprob = if place == rank { logprob } else { behind };
        json!({"token": name(bytes), "logprob": logprob, "bytes": bytes})
    });
    list.collect()
}

/// Aggregates the scores of one arm's tokens under another arm.
fn pair(prompts: &[Value], arm: usize, under: usize) -> Value {
    let answers = prompts
        .iter()
        .flat_map(|prompt| prompt["answers"].as_array().unwrap());
    let answers = answers.filter(|answer| answer["arm"] == arm);
    let mut by_place: BTreeMap<usize, Vec<(&Value, &Value)>> = BTreeMap::new();
    let mut by_token: BTreeMap<u64, Vec<(&Value, &Value)>> = BTreeMap::new();
    for answer in answers {
        for (position, token) in answer["tokens"].as_array().unwrap().iter().enumerate() {
            let score = token["scores"]
                .as_array()
                .unwrap()
                .iter()
                .find(|score| score["arm"] == under);
            let scored = (token, score.unwrap());
            by_place.entry(position).or_default().push(scored);
            by_token
                .entry(token["id"].as_u64().unwrap())
                .or_default()
                .push(scored);
        }
    }
    let positions: Vec<Value> = by_place
        .iter()
        .map(|(position, scored)| {
            json!({
                "position": position, "tokens": scored.len(),
                "unshifted": share(scored, "unshifted"), "marginal": share(scored, "marginal"),
                "shifted": share(scored, "shifted"), "kl": mean(scored, "kl"),
                "kl_reverse": mean(scored, "kl_reverse"),
                "probability": mean(scored, "logprob").exp(),
            })
        })
        .collect();
    let mut most_shifted: Vec<Value> = by_token
        .iter()
        .map(|(id, scored)| {
            let shifted = scored
                .iter()
                .filter(|(_, score)| score["class"] == "shifted")
                .count();
            json!({"id": id, "token": scored[0].0["token"], "count": scored.len(),
                "shifted": shifted, "rank": mean(scored, "rank"), "kl": mean(scored, "kl")})
        })
        .filter(|row| row["shifted"] != 0)
        .collect();
    most_shifted.sort_by_key(|row| std::cmp::Reverse(row["shifted"].as_u64()));
    most_shifted.truncate(20);
    let all: Vec<(&Value, &Value)> = by_place.into_values().flatten().collect();
    let around = |value: f64| json!([value * 0.8, value * 1.15]);
    let mut interval = json!({"prompts": prompts.len()});
    let mut shares = json!({});
    for class in CLASSES {
        shares[class] = json!(share(&all, class));
        interval[class] = around(share(&all, class));
    }
    for key in ["kl", "kl_reverse"] {
        interval[key] = around(mean(&all, key));
    }
    let own: Vec<(&Value, &Value)> = all.iter().map(|(token, _)| (*token, *token)).collect();
    json!({
        "arm": arm, "under": under, "tokens": all.len(), "shares": shares,
        "kl": mean(&all, "kl"), "kl_reverse": mean(&all, "kl_reverse"),
        "logprob": mean(&all, "logprob"), "own_logprob": mean(&own, "logprob"),
        "interval": interval, "positions": positions, "most_shifted": most_shifted,
    })
}

fn share(scored: &[(&Value, &Value)], class: &str) -> f64 {
    let of_class = scored.iter().filter(|(_, score)| score["class"] == class);
    of_class.count() as f64 / scored.len() as f64
}

fn mean(scored: &[(&Value, &Value)], key: &str) -> f64 {
    let values = scored.iter().map(|(_, score)| score[key].as_f64().unwrap());
    values.sum::<f64>() / scored.len() as f64
}

fn sampling(temperatures: &[f64]) -> Value {
    let rows = (0..3).flat_map(|arm| {
        temperatures.iter().map(move |temperature| {
            json!({"arm": arm, "temperature": temperature, "answers": 2,
                "distinct": 0.3 + 0.3 * temperature, "distinct_2": 0.41 + 0.2 * temperature,
                "diversity": 0.2 + 0.25 * temperature, "tokens": 48.25 + arm as f64,
                "logprob": if arm == 2 { Value::Null } else { json!(-0.7 - temperature) }})
        })
    });
    rows.collect()
}

/// A random number generator (linear congruential).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn part(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }
}
