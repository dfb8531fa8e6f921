//! All errors of a profile's file at once, for authors of profiles.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use toml::de::DeTable;
use toml::{Table, Value};

use super::front_matter::{
    self, FrontMatter, GuidanceDefaults, SamplingDefaults, language_problem, line_at,
    markers_problem, name_problem, variant_problem,
};
use super::limits::{check_source, on_deep_stack};
use super::{Profile, ProfileError};

/// The required keys, and their descriptions.
const REQUIRED: [(&str, &str); 7] = [
    ("name", "its name in model ids, such as name = \"brief\""),
    (
        "title",
        "a few words for a list, such as title = \"Brief answers\"",
    ),
    ("description", "a line that says what it is for"),
    (
        "language",
        "the language it is written in, such as language = \"en\"",
    ),
    (
        "shots",
        "how many examples the prefix holds, such as shots = 2",
    ),
    (
        "version",
        "raised when the text changes; begin with version = 1",
    ),
    (
        "markers",
        "what begins a turn, and so ends an answer, such as markers = [\"# Query:\"]",
    ),
];

/// The optional keys.
const OPTIONAL: [&str; 3] = ["variant_of", "sampling", "guidance"];

/// Parses a profile like [`Profile::parse`], but reports all problems. Returns a profile
/// exactly if there are none; `file` names it in errors.
pub fn check(file: &str, source: &str) -> Result<Profile, Vec<ProfileError>> {
    check_source(file, source).map_err(|error| vec![error])?;
    on_deep_stack(|| Ok(checked(file, source))).map_err(|error| vec![error])?
}

fn checked(file: &str, source: &str) -> Result<Profile, Vec<ProfileError>> {
    let (toml, template) = front_matter::parts(file, source).map_err(|error| vec![error])?;
    let mut reading = Reading::new(file, &toml);
    let front = reading.front();
    let mut problems = reading.problems;
    problems.sort_by_key(ProfileError::line);
    let (profile, of_template) = Profile::assemble(file, front, template);
    problems.extend(of_template);
    match profile {
        Some(profile) if problems.is_empty() => Ok(profile),
        _ => Err(problems),
    }
}

/// A front matter that is read key by key.
struct Reading<'a> {
    file: &'a str,
    table: Table,
    /// The line of each key of the table, or of a nested table, such as `sampling.top_k`.
    lines: BTreeMap<String, usize>,
    problems: Vec<ProfileError>,
}

impl<'a> Reading<'a> {
    fn new(file: &'a str, toml: &str) -> Reading<'a> {
        let mut reading = Reading {
            file,
            table: Table::new(),
            lines: BTreeMap::new(),
            problems: Vec::new(),
        };
        let parsed = toml::from_str(toml).and_then(|table| Ok((table, DeTable::parse(toml)?)));
        match parsed {
            Ok((table, spans)) => {
                reading.table = table;
                for (key, value) in spans.get_ref() {
                    let name = key.get_ref();
                    let line = line_at(toml, key.span().start);
                    reading.lines.insert(name.to_string(), line);
                    for (inner, _) in value.get_ref().as_table().into_iter().flatten() {
                        let line = line_at(toml, inner.span().start);
                        let inner = format!("{name}.{}", inner.get_ref());
                        reading.lines.insert(inner, line);
                    }
                }
            }
            Err(error) => reading
                .problems
                .push(front_matter::syntax(file, toml, &error)),
        }
        reading
    }

    /// The readable part of the front matter, with harmless values for the rest.
    fn front(&mut self) -> FrontMatter {
        // After a syntax error nothing was read, and every key would be reported as missing.
        if self.problems.is_empty() {
            self.check_keys();
        }
        let name: Option<String> = self.value("name", |name: &String| name_problem(name));
        let variant_of = self.value("variant_of", |variant_of: &String| {
            variant_problem(variant_of, name.as_deref().unwrap_or_default())
        });
        FrontMatter {
            title: self.value("title", |_: &String| None).unwrap_or_default(),
            description: self
                .value("description", |_: &String| None)
                .unwrap_or_default(),
            language: self
                .value("language", |language: &String| language_problem(language))
                .unwrap_or_default(),
            shots: self.value("shots", |_| None).unwrap_or_default(),
            version: self.value("version", |_| None).unwrap_or_default(),
            markers: self
                .value("markers", |markers: &Vec<String>| markers_problem(markers))
                .unwrap_or_default(),
            sampling: self.sampling(),
            guidance: self.value("guidance", GuidanceDefaults::out_of_range),
            name: name.unwrap_or_default(),
            variant_of,
        }
    }

    fn check_keys(&mut self) {
        for (key, says) in REQUIRED {
            if !self.table.contains_key(key) {
                let problem = format!("the front matter is missing `{key}`: {says}");
                self.problem(None, problem);
            }
        }
        let known = |key: &str| {
            let mut required = REQUIRED.iter().map(|(key, _)| *key);
            required.any(|name| name == key) || OPTIONAL.contains(&key)
        };
        let keys: Vec<String> = self.table.keys().cloned().collect();
        for key in keys.iter().filter(|key| !known(key)) {
            self.problem(
                Some(key),
                format!("the front matter has an unknown key `{key}`"),
            );
        }
    }

    /// The value of a key, if it is there and valid.
    fn value<T: DeserializeOwned>(
        &mut self,
        key: &str,
        problem: impl Fn(&T) -> Option<String>,
    ) -> Option<T> {
        let value = self.table.get(key)?.clone();
        match value.try_into() {
            Ok(value) => match problem(&value) {
                None => Some(value),
                Some(problem) => {
                    self.problem(Some(key), problem);
                    None
                }
            },
            Err(error) => {
                self.problem(Some(key), format!("{key}: {}", error.message()));
                None
            }
        }
    }

    /// The sampling defaults, each of which is checked by itself.
    fn sampling(&mut self) -> SamplingDefaults {
        let Some(Value::Table(table)) = self.table.get("sampling").cloned() else {
            return self.value("sampling", |_| None).unwrap_or_default();
        };
        let mut good = Table::new();
        for (key, value) in table {
            let only = Table::from_iter([(key.clone(), value.clone())]);
            let read: Result<SamplingDefaults, _> = Value::Table(only).try_into();
            let problem = match read {
                Ok(read) => read.out_of_range(),
                Err(error) => Some(format!("sampling.{key}: {}", error.message())),
            };
            match problem {
                Some(problem) => self.problem(Some(&format!("sampling.{key}")), problem),
                None => _ = good.insert(key, value),
            }
        }
        // Each of these was read before.
        Value::Table(good).try_into().unwrap_or_default()
    }

    /// Reports a problem with a key, or with the front matter as a whole.
    fn problem(&mut self, key: Option<&str>, problem: String) {
        let line = match key {
            Some(key) => self.lines.get(key).copied(),
            None => Some(1),
        };
        self.problems
            .push(ProfileError::broken(self.file, line, problem));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "+++\n{% block prefix %}\n{% endblock %}\n{% block turns %}\n\
        {% for message in messages %}\n# Query:\n{{ message.content }}\n{% endfor %}\n\
        # Answer:\n{% endblock %}\n";

    fn problems(front: &str, body: &str) -> Vec<String> {
        let found = check("own.jinja", &format!("+++\n{front}{body}"));
        let problems = found.err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_that_is_missing_or_wrong_is_told_at_once_with_its_line() {
        let front = "name = \"Own\"\ntitle = 5\nlanguage = \"english\"\n\
            markers = [\"# Query:\", \"# Nothing:\"]\nshot = 1\n\
            [sampling]\ntemperature = 3\ntop_q = 1\ntop_k = \"many\"\n";
        let body = BODY.replace("{{ message.content }}", "{{ message.content }}{{ extra }}");
        let found = problems(front, &format!("{body}stray\n"));
        let expected = [
            "own.jinja:1: the front matter is missing `description`: ",
            "own.jinja:1: the front matter is missing `shots`: ",
            "own.jinja:1: the front matter is missing `version`: ",
            "own.jinja:2: name \"Own\" may hold only",
            "own.jinja:3: title: invalid type",
            "own.jinja:4: language \"english\" is no BCP-47 tag",
            "own.jinja:6: the front matter has an unknown key `shot`",
            "own.jinja:8: sampling.temperature is 3, not 0 to 2",
            "own.jinja:9: sampling.top_q: unknown field",
            "own.jinja:10: sampling.top_k: invalid type",
            "own.jinja:17: undefined value",
            "own.jinja: unknown variable \"extra\"",
            "own.jinja: \"stray\" stands outside",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}, not {expected}");
        }
    }

    #[test]
    fn an_empty_front_matter_lacks_every_key() {
        let found = problems("", BODY);
        assert_eq!(found.len(), REQUIRED.len(), "{found:#?}");
        assert_eq!(problems("name = \n", BODY).len(), 1);
        assert!(problems("", "")[0].contains("must come first"));
    }

    /// `check` and `parse` must agree on which files are valid.
    #[test]
    fn a_file_has_problems_exactly_if_it_cannot_be_parsed() {
        let good = "name = \"own\"\ntitle = \"a\"\ndescription = \"b\"\nlanguage = \"en\"\n\
            shots = 0\nversion = 1\nmarkers = [\"# Query:\"]\n";
        let fronts = [
            good.to_owned(),
            good.replace("own", "base"),
            format!("{good}variant_of = \"own\"\n"),
            format!("{good}variant_of = \"other\"\n"),
            format!("{good}guidance = 1\n"),
            format!("{good}guidance = {{weight = 11}}\n"),
            format!("{good}guidance = {{weight = 1}}\n"),
            format!("{good}sampling = 1\n"),
            format!("{good}sampling = {{max_tokens = 0}}\n"),
            good.replace("version = 1", "version = -1"),
            good.replace("# Query:", "# Nothing:"),
        ];
        for front in fronts {
            for body in [BODY, &BODY.replace("block turns", "block rest")] {
                let source = format!("+++\n{front}{body}");
                let parsed = Profile::parse("own.jinja", &source);
                let checked = check("own.jinja", &source);
                assert_eq!(parsed.is_ok(), checked.is_ok(), "{source}");
            }
        }
    }
}
