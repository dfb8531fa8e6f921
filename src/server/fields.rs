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
use serde::de::{
    DeserializeOwned, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::errors::ApiError;
use crate::printable::excerpt;

/// The object a client sent.
pub(crate) struct Fields {
    object: Value,
    /// Top-level fields that some view knew.
    known: BTreeSet<String>,
    /// Unknown fields below the top level, without list positions: `messages[].name`.
    nested: BTreeSet<String>,
}

impl Fields {
    /// Parses a body, which must be one JSON object. A byte order mark, which some
    /// clients put before it, is skipped (RFC 8259, section 8.1).
    pub(crate) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
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
    let mut param = excerpt(&param).into_owned();
    if let Some(name) = message
        .strip_prefix("missing field `")
        .and_then(|rest| rest.strip_suffix('`'))
    {
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
    // What it expected is ours, what it found is the client's.
    let message = match message.rsplit_once(", expected ") {
        Some((found, expected)) => format!("{}, expected {expected}", excerpt(found)),
        None => excerpt(message).into_owned(),
    };
    if param.is_empty() {
        return ApiError::malformed(message);
    }
    ApiError::Invalid {
        message: format!("`{param}`: {message}."),
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

/// Integers, which can be written as `2.0` too: JSON has numbers and no kinds of them.
pub(crate) mod whole {
    use super::*;

    /// A field that may be absent, beside `#[serde(default)]`.
    pub(crate) fn option<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<i64>,
    {
        let value = Option::<Whole<T>>::deserialize(deserializer)?;
        Ok(value.map(|Whole(value)| value))
    }

    /// A list of integers.
    pub(crate) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<i64>,
    {
        let values = Vec::<Whole<T>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|Whole(value)| value).collect())
    }

    /// A list that may be absent, beside `#[serde(default)]`.
    pub(crate) fn optional_list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<i64>,
    {
        let values = Option::<Vec<Whole<T>>>::deserialize(deserializer)?;
        let plain = |values: Vec<Whole<T>>| values.into_iter().map(|Whole(value)| value).collect();
        Ok(values.map(plain))
    }

    /// The integer that a number is, if it is one.
    pub(crate) fn of_float(number: f64) -> Option<i64> {
        // Beyond this not every integer has a float.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
    }

    /// An integer that fits a `T`.
    struct Whole<T>(T);

    impl<'de, T: TryFrom<i64>> Deserialize<'de> for Whole<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct WholeVisitor<T>(PhantomData<T>);
            impl<T: TryFrom<i64>> Visitor<'_> for WholeVisitor<T> {
                type Value = Whole<T>;

                fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                    formatter.write_str("an integer")
                }

                fn visit_i64<E: Error>(self, number: i64) -> Result<Whole<T>, E> {
                    let fitting = T::try_from(number);
                    fitting
                        .map(Whole)
                        .map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
                }

                fn visit_u64<E: Error>(self, number: u64) -> Result<Whole<T>, E> {
                    match i64::try_from(number) {
                        Ok(number) => self.visit_i64(number),
                        Err(_) => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
                    }
                }

                fn visit_f64<E: Error>(self, number: f64) -> Result<Whole<T>, E> {
                    match of_float(number) {
                        Some(number) => self.visit_i64(number),
                        None => Err(E::invalid_type(Unexpected::Float(number), &self)),
                    }
                }
            }
            // What `deserialize_i64` would say of other types is less plain.
            deserializer.deserialize_any(WholeVisitor(PhantomData))
        }
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
    fn a_byte_order_mark_is_skipped_before_the_body_alone() {
        let mut fields = Fields::parse("\u{feff}{\"size\": 1}".as_bytes()).unwrap();
        assert_eq!(fields.take("size"), Some(&json!(1)));
        for body in [
            "{\u{feff}\"size\": 1}",
            "{}\u{feff}",
            "\u{feff}\u{feff}{}",
            "\u{feff}",
        ] {
            assert!(Fields::parse(body.as_bytes()).is_err(), "{body:?}");
        }
    }

    #[test]
    fn an_integer_may_be_written_with_a_fraction_of_zero() {
        #[derive(Debug, Default, PartialEq, Deserialize)]
        #[serde(default)]
        struct Numbers {
            #[serde(deserialize_with = "whole::option")]
            one: Option<i64>,
            #[serde(deserialize_with = "whole::optional_list")]
            some: Option<Vec<u32>>,
        }
        let read = |text: &str| Fields::parse(text.as_bytes()).unwrap().view::<Numbers>();
        let one = |text: &str| read(&format!("{{\"one\": {text}}}")).map(|read| read.one);
        for text in ["2", "2.0", "2e0", "0.2e1"] {
            assert_eq!(one(text), Ok(Some(2)), "{text}");
        }
        assert_eq!(one("-1.0"), Ok(Some(-1)));
        assert_eq!(one("null"), Ok(None));
        let some = read("{\"some\": [5.0, 6]}").unwrap();
        assert_eq!(some.some, Some(vec![5, 6]));
        for wrong in ["2.5", "1e300", "9.3e18", "\"2\"", "true", "[2]"] {
            assert!(one(wrong).is_err(), "{wrong}");
        }
        let negative = read("{\"some\": [1, -2.0]}");
        match negative {
            Err(ApiError::Invalid { param, .. }) => assert_eq!(param.as_deref(), Some("some[1]")),
            other => panic!("{other:?}"),
        }
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
