//! Reads a JSON body as one or more typed views of the same object.
//!
//! Chat and completions share most of their parameters. Instead of one large
//! struct each, a handler reads its own fields as one view and the shared ones
//! as another. A field that no view knew is unknown: it is warned of once, or
//! refused where the server is strict. A field whose value is null counts as
//! absent everywhere.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::errors::ApiError;

/// The object a client sent.
pub(crate) struct Fields {
use crate::printable::excerpt;
    object: Value,
    /// Top-level fields that some view knew.
    known: BTreeSet<String>,
    /// Unknown fields below the top level, without list positions: `messages[].name`.
    nested: BTreeSet<String>,
}

impl Fields {
    /// Parses a body, which must be one JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let object: Value = serde_json::from_slice(body).map_err(|error| {
            ApiError::malformed(format!("The body is not valid JSON: {error}."))
        })?;
        if !object.is_object() {
            return Err(ApiError::malformed("The body must be a JSON object."));
        }
        Ok(Fields {
            object,
            known: BTreeSet::new(),
            nested: BTreeSet::new(),
        })
    }

    /// Reads the fields that `T` knows; an error names the field at fault.
    pub(crate) fn view<T: DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        let mut ignored = BTreeSet::new();
        let mut nested = BTreeSet::new();
        let mut track = serde_path_to_error::Track::new();
        let mut note = |path: serde_ignored::Path<'_>| match nested_name(&path) {
            (true, name) => _ = ignored.insert(name),
            (false, name) => _ = nested.insert(name),
        };
        let tracked = serde_path_to_error::Deserializer::new(&self.object, &mut track);
        let result = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut note));
        let view = result.map_err(|error| mistyped(&error.to_string(), &track.path()))?;
        let keys = self
            .object
            .as_object()
            .into_iter()
            .flat_map(|object| object.keys());
        self.known
            .extend(keys.filter(|key| !ignored.contains(*key)).cloned());
        self.nested.extend(nested);
        Ok(view)
    }

    /// The value of a field, unless it is absent or null; the field is known from now on.
    pub(crate) fn take(&mut self, name: &str) -> Option<&Value> {
        self.known.insert(name.to_owned());
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// The fields that no view knew, null ones aside.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = &str> {
        let object = self.object.as_object().into_iter().flatten();
        let top = object.filter(|(key, value)| !value.is_null() && !self.known.contains(*key));
        top.map(|(key, _)| key.as_str())
            .chain(self.nested.iter().map(String::as_str))
    }
}

/// Whether a path is at the top level, and its name without list positions.
fn nested_name(path: &serde_ignored::Path<'_>) -> (bool, String) {
    use serde_ignored::Path as P;
    match path {
        P::Root => (true, String::new()),
        P::Seq { parent, .. } => (false, nested_name(parent).1 + "[]"),
        P::Map { parent, key } => match nested_name(parent).1 {
            name if name.is_empty() => (true, (*key).to_owned()),
            name => (false, format!("{name}.{key}")),
        },
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => {
            nested_name(parent)
        }
    }
}

/// Tells of a value that could not be read, naming it as a client would.
fn mistyped(message: &str, path: &Path) -> ApiError {
    let mut param = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => param += &format!("[{index}]"),
            Segment::Map { key } if param.is_empty() => param += key,
            Segment::Map { key } => param += &format!(".{key}"),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    // serde reports a missing field at the object that lacks it.
    if let Some(name) = message
        .strip_prefix("missing field `")
        .and_then(|rest| rest.strip_suffix('`'))
    {
    let mut param = excerpt(&param).into_owned();
        param = if param.is_empty() {
            name.to_owned()
        } else {
            format!("{param}.{name}")
        };
        return ApiError::Invalid {
            message: format!("`{param}` is required."),
            param: Some(param),
        };
    }
    if param.is_empty() {
        return ApiError::malformed(message);
    }
    ApiError::Invalid {
        message: format!("`{param}`: {message}."),
    // What it expected is ours, what it found is the client's.
    let message = match message.rsplit_once(", expected ") {
        Some((found, expected)) => format!("{}, expected {expected}", excerpt(found)),
        None => excerpt(message).into_owned(),
    };
        param: Some(param),
    }
}

/// A `T` that is written as a JSON object, and as nothing else: serde by itself
/// would also read a struct from a list of its fields' values.
#[derive(Clone, Debug)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Object<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A string, or a list of `T`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TextOr<T> {
    /// The string alone.
    Text(String),
    /// The list.
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrVisitor<T> {
            type Value = TextOr<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or a list")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TextOr<T>, E> {
                String::deserialize(text.into_deserializer()).map(TextOr::Text)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<TextOr<T>, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(TextOr::List)
            }
        }
        deserializer.deserialize_any(TextOrVisitor(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for TextOr<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("TextOr{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let list = generator.subschema_for::<Vec<T>>();
        schemars::json_schema!({"anyOf": [{"type": "string"}, list]})
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[serde(rename = "role")]
        _role: String,
    }

    #[derive(Debug, Deserialize)]
    struct View {
        #[serde(rename = "size")]
        _size: Option<u32>,
        #[serde(default, rename = "list")]
        _list: Vec<Object<Inner>>,
        #[serde(rename = "stop")]
        _stop: Option<TextOr<String>>,
    }

    #[derive(Debug, Deserialize)]
    struct Other {
        #[serde(rename = "heat")]
        _heat: Option<f64>,
    }

    fn fields(value: Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    fn fault(value: Value) -> (String, Option<String>) {
        match fields(value).view::<View>() {
            Err(ApiError::Invalid { message, param }) => (message, param),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn the_field_at_fault_is_named_with_its_path() {
        let cases = [
            (json!({"size": "big"}), "size"),
            (json!({"size": -1}), "size"),
            (json!({"size": 1.5}), "size"),
            (
                json!({"list": [{"role": "a"}, {"role": 3}]}),
                "list[1].role",
            ),
            (json!({"list": [{}]}), "list[0].role"),
            (json!({"list": [["a"]]}), "list[0]"),
            (json!({"list": 7}), "list"),
            (json!({"stop": 7}), "stop"),
            (json!({"stop": ["a", 7]}), "stop[1]"),
        ];
        for (value, expected) in cases {
            let (message, param) = fault(value.clone());
            assert_eq!(param.as_deref(), Some(expected), "{value}: {message}");
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn what_is_not_an_object_has_no_field_to_blame() {
        for body in [
            "",
            "{",
            "[]",
            "3",
            "{\"a\":1} x",
            "{\"a\":\"\u{1}\"}",
            "\"text\"",
        ] {
            let error = Fields::parse(body.as_bytes()).err();
            assert!(
                matches!(error, Some(ApiError::Invalid { param: None, .. })),
                "{body}"
            );
        }
        assert!(Fields::parse(b"{\"a\":\"\xff\"}").is_err(), "not UTF-8");
        assert!(
            Fields::parse("[".repeat(100_000).as_bytes()).is_err(),
            "too deep"
        );
    }

    #[test]
    fn null_is_absent() {
        let mut fields = fields(json!({"size": null, "stop": null, "odd": null}));
        let view: View = fields.view().unwrap();
        assert!(view._size.is_none() && view._stop.is_none());
        assert_eq!(fields.unknown().count(), 0);
    }

    #[test]
    fn unknown_is_what_no_view_knew() {
        let mut fields = fields(json!({
            "size": 1, "heat": 2.0, "odd": 3, "taken": 4,
            "list": [{"role": "a", "name": "x"}, {"role": "b", "name": "y"}],
        }));
        fields.view::<View>().unwrap();
        fields.view::<Other>().unwrap();
        assert_eq!(fields.take("taken"), Some(&json!(4)));
        assert_eq!(fields.unknown().collect::<Vec<_>>(), ["odd", "list[].name"]);
    }
}
