use super::*;

const FRONT: &str = "+++\nname = \"short\"\ntitle = \"Short\"\ndescription = \"For tests\"\n\
    language = \"en\"\nshots = 0\nversion = 1\nmarkers = [\"# Query:\"]\n+++\n";

fn error_of(source: &str) -> String {
    split("short.jinja", source).unwrap_err().to_string()
}

#[test]
fn the_template_keeps_the_files_line_numbers() {
    let (front, template) = split("short.jinja", &format!("{FRONT}first\nsecond\n")).unwrap();
    assert_eq!(front.name, "short");
    assert_eq!(template.lines().nth(9), Some("first"));
    assert_eq!(template.trim_start(), "first\nsecond\n");
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_change_nothing() {
    let plain = format!("{FRONT}first\n");
    let windows = format!("\u{feff}{}", plain.replace('\n', "\r\n"));
    assert_eq!(
        split("a.jinja", &plain).unwrap(),
        split("a.jinja", &windows).unwrap()
    );
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let source = FRONT.replace("shots = 0", "shots = 0\nstop = [\"x\"]");
    let error = error_of(&source);
    assert!(
        error.starts_with("short.jinja:7: unknown field `stop`"),
        "{error}"
    );
    let source = FRONT.replace("\n+++\n", "\n[sampling]\ntemprature = 0\n+++\n");
    let error = error_of(&source);
    assert!(
        error.starts_with("short.jinja:10: unknown field `temprature`"),
        "{error}"
    );
}

#[test]
fn a_missing_fence_and_a_missing_key_are_named() {
    assert!(error_of("hello").starts_with("short.jinja:1: front matter"));
    assert!(error_of("+++\nname = \"x\"\n").starts_with("short.jinja:2: front matter"));
    assert!(error_of("+++\n+++\n").contains("missing field `name`"));
}

#[test]
fn errors_hold_no_commands_to_a_terminal() {
    let source = FRONT.replace("shots = 0", "shots = 0\n\"\\u001b[2J\" = 1");
    let error = error_of(&source);
    assert!(
        error.contains("\\u{1b}") && !error.contains('\u{1b}'),
        "{error:?}"
    );
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    let refuse = |from: &str, to: &str, expected: &str| {
        let source = FRONT.replace(from, to);
        assert_ne!(source, FRONT);
        let error = error_of(&source);
        assert!(error.contains(expected), "{error}");
    };
    refuse("\"short\"", "\"a@b\"", "name \"a@b\"");
    refuse("\"short\"", "\"base\"", "built in");
    refuse("\"en\"", "\"english language\"", "BCP-47");
    refuse(
        "\"en\"",
        "\"en\"\nvariant_of = \"short\"",
        "variant_of names the profile itself",
    );
    refuse("[\"# Query:\"]", "[]", "markers is empty");
    refuse("[\"# Query:\"]", "[\" # Query:\"]", "marker \" # Query:\"");
    let sampling = |line: &str| format!("\n[sampling]\n{line}\n+++\n");
    for (line, expected) in [
        ("temperature = 2.5", "temperature is 2.5, not 0 to 2"),
        ("top_p = -0.1", "top_p is -0.1"),
        ("temperature = nan", "temperature is NaN"),
        ("repetition_penalty = 0.0", "not above 0"),
        ("max_tokens = 0", "not at least 1"),
        (
            "dry_multiplier = 101.0",
            "dry_multiplier is 101, not 0 to 100",
        ),
        ("dry_base = -0.5", "dry_base is -0.5, not 0 to 10"),
        ("dry_allowed_length = 1_000_001", "not 0 to 1000000"),
        ("dry_penalty_last_n = -2", "is -2, not -1 to 1000000"),
        ("dry_sequence_breakers = [\"\"]", "hold an empty text"),
        ("top_n_sigma = 101.0", "top_n_sigma is 101, not -1 to 100"),
        ("typical_p = 1.1", "typical_p is 1.1, not 0 to 1"),
        ("xtc_probability = nan", "xtc_probability is NaN"),
        ("xtc_threshold = 2.0", "xtc_threshold is 2, not 0 to 1"),
    ] {
        refuse("\n+++\n", &sampling(line), expected);
    }
    let guidance = |line: &str| format!("\n[guidance]\n{line}\n+++\n");
    for (line, expected) in [
        ("weight = -0.5", "guidance.weight is -0.5, not 0 to 10"),
        ("weight = nan", "guidance.weight is NaN"),
        ("plausible = 0.1", "missing field `weight`"),
        ("weight = 1.0\nplausible = 0.0", "guidance.plausible is 0"),
        ("weight = 1.0\nplausible = 1.5", "guidance.plausible is 1.5"),
    ] {
        refuse("\n+++\n", &guidance(line), expected);
    }
}

#[test]
fn every_sampler_can_have_a_default() {
    let sampling = "\n[sampling]\ndry_multiplier = 0.8\ndry_base = 2\ndry_allowed_length = 3\n\
        dry_penalty_last_n = -1\ndry_sequence_breakers = [\"\\n\"]\ntop_n_sigma = 1.5\n\
        typical_p = 0.9\nxtc_probability = 0.5\nxtc_threshold = 0.2\n+++\n";
    let source = FRONT.replace("\n+++\n", sampling);
    let defaults = split("short.jinja", &source).unwrap().0.sampling;
    assert_eq!(defaults.dry_sequence_breakers, Some(vec!["\n".to_owned()]));
    let expected = SamplingParams {
        dry: Box::new(DryParams {
            multiplier: 0.8,
            base: 2.0,
            allowed_length: 3,
            ..DryParams::default()
        }),
        top_n_sigma: 1.5,
        typical_p: 0.9,
        xtc_probability: 0.5,
        xtc_threshold: 0.2,
        ..SamplingParams::default()
    };
    assert_eq!(defaults.sampling(), expected);
    let last = SamplingDefaults {
        dry_penalty_last_n: Some(64),
        ..SamplingDefaults::default()
    };
    assert_eq!(last.sampling().dry.penalty_last_n, Some(64));
}

#[test]
fn absent_defaults_are_anothers() {
    let read = |toml: &str| toml::from_str::<SamplingDefaults>(toml).unwrap();
    let profile = read("temperature = 0.0\ntop_k = 0\ndry_penalty_last_n = -1");
    let model = read("temperature = 0.2\ntop_p = 0.9\ndry_allowed_length = 2");
    let both = profile.or(&model);
    assert_eq!(both.temperature, Some(0.0));
    assert_eq!(both.top_p, Some(0.9));
    let shown = serde_json::to_string(&both.without_openai_defaults()).unwrap();
    assert_eq!(shown, r#"{"temperature":0.0,"top_p":0.9}"#);
}

#[test]
fn sequence_breakers_have_a_number_and_a_size() {
    let texts = |count: usize, bytes: usize| vec!["x".repeat(bytes); count];
    assert_eq!(
        breakers_problem(&texts(MAX_BREAKERS, MAX_BREAKER_BYTES)),
        None
    );
    assert_eq!(breakers_problem(&[]), None);
    for (count, bytes) in [(MAX_BREAKERS + 1, 1), (1, MAX_BREAKER_BYTES + 1), (1, 0)] {
        assert!(breakers_problem(&texts(count, bytes)).is_some());
    }
}

#[test]
fn language_tags_have_the_shape_of_bcp_47() {
    for good in ["en", "ja", "pt-BR", "zh-Hant-TW", "haw"] {
        assert!(is_language_tag(good), "{good}");
    }
    for bad in ["", "e", "english", "en_GB", "en-", "日本"] {
        assert!(!is_language_tag(bad), "{bad}");
    }
}
