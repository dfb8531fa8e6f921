//! Reads a JSON body as one or more typed views of the same object.
//!
//! Chat and completions share most of their parameters. Instead of one large struct each, a handler
//! reads its own fields as one view and the shared ones as another. A field that no view has is
//! unknown: the server warns of it once, or refuses it if it is strict. A null field counts as
//! absent everywhere.
//!
//! The body is not parsed into a tree. It is validated once from end to end, and then only the
//! names of its fields are kept, with the positions of their values in the body. A value takes
//! memory when a view has a field for it.

mod types;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use indexmap::IndexMap;
use indexmap::map::Iter;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_path_to_error::{Path, Segment};

use super::errors::ApiError;
use incant_gguf::printable::excerpt;

pub(crate) use types::{BoundedList, Object, Skipped, StringOr, integer};

/// The JSON object that a client sent.
pub(crate) struct Fields<'a> {
    fields: IndexMap<Cow<'a, str>, Field<'a>>,
    /// Unknown fields below the top level, without list positions: `messages[].name`.
    nested: BTreeSet<String>,
}

/// A field at the top level.
struct Field<'a> {
    value: RawField<'a>,
    /// Whether some view has it.
    is_known: bool,
}

/// A value as the client wrote it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawField<'a>(&'a RawValue);

impl<'a> RawField<'a> {
    /// Reads the value, if it is a `T`.
    pub(crate) fn read<T: Deserialize<'a>>(self) -> Option<T> {
        serde_json::from_str(self.0.get()).ok()
    }

    /// Returns whether it is an object.
    pub(crate) fn is_object(self) -> bool {
        self.0.get().starts_with('{')
    }

    /// Returns whether it is a string.
    pub(crate) fn is_text(self) -> bool {
        self.0.get().starts_with('"')
    }

    fn is_null(self) -> bool {
        self.0.get() == "null"
    }
}

impl<'a> Fields<'a> {
    /// Parses a body, which must be one JSON object. A byte order mark, which some clients send
    /// first, is skipped (RFC 8259, section 8.1). Of fields with the same name the last counts.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Fields<'a>, ApiError> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let unsound = |error: serde_json::Error| {
            ApiError::malformed(format!("The body is not valid JSON: {error}."))
        };
        serde_json::from_slice::<Skipped>(body).map_err(unsound)?;
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::malformed("The body must be a JSON object."));
        }
        let Entries(fields) = serde_json::from_slice(body).map_err(unsound)?;
        Ok(Fields {
            fields,
            nested: BTreeSet::new(),
        })
    }

    /// Reads the fields that `T` has; an error names the field at fault.
    pub(crate) fn view<T: Deserialize<'a>>(&mut self) -> Result<T, ApiError> {
        let mut ignored = BTreeSet::new();
        let mut nested = BTreeSet::new();
        let mut track = serde_path_to_error::Track::new();
        let mut note = |path: serde_ignored::Path<'_>| match nested_name(&path) {
            (true, name) => _ = ignored.insert(name),
            (false, name) => _ = nested.insert(name),
        };
        let tracked = serde_path_to_error::Deserializer::new(Whole(&self.fields), &mut track);
        let result = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut note));
        let view = result.map_err(|error| mistyped(&unplaced(&error), &track.path()))?;
        for (name, field) in &mut self.fields {
            field.is_known |= !ignored.contains(&**name);
        }
        self.nested.extend(nested);
        Ok(view)
    }

    /// Returns the value of a field, unless it is absent or null; the field is known from now on.
    pub(crate) fn take(&mut self, name: &str) -> Option<RawField<'a>> {
        let field = self.fields.get_mut(name)?;
        field.is_known = true;
        Some(field.value).filter(|value| !value.is_null())
    }

    /// Returns the fields that no view has, except null ones.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = &str> {
        let unknown = |(_, field): &(_, &Field<'_>)| !field.is_known && !field.value.is_null();
        let top = self.fields.iter().filter(unknown);
        top.map(|(name, _)| &**name)
            .chain(self.nested.iter().map(String::as_str))
    }
}

/// The fields of an object by name.
struct Entries<'a>(IndexMap<Cow<'a, str>, Field<'a>>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut fields = IndexMap::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &RawValue>()? {
                    let field = Field {
                        value: RawField(value),
                        is_known: false,
                    };
                    fields.insert(name, field);
                }
                Ok(Entries(fields))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// A field's name, copied only if it is written with escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The whole object, as the deserializer of a view.
struct Whole<'f, 'a>(&'f IndexMap<Cow<'a, str>, Field<'a>>);

impl<'de> Deserializer<'de> for Whole<'_, 'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_map(Walk {
            rest: self.0.iter(),
            value: None,
        })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        option unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

/// An iteration over the fields.
struct Walk<'f, 'a> {
    rest: Iter<'f, Cow<'a, str>, Field<'a>>,
    /// The value of the last name read.
    value: Option<RawField<'a>>,
}

impl<'a> MapAccess<'a> for Walk<'_, 'a> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Self::Error> {
        let Some((name, field)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some(field.value);
        let name = serde::de::value::StrDeserializer::new(name);
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Self::Error> {
        // Serde asks for a value only after its name.
        let text = self
            .value
            .take()
            .map_or("null", |RawField(value)| value.get());
        seed.deserialize(&mut serde_json::Deserializer::from_str(text))
    }
}

/// Returns an error's message without the position in the value, which means nothing to the client,
/// who sent a whole body.
fn unplaced(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match message.strip_suffix(&place) {
        Some(message) => message.to_owned(),
        None => message,
    }
}

/// Returns whether a path is at the top level, and its name without list positions.
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

/// Reports a value of the wrong type, with the path that a client would use.
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
    // serde reports a missing field at the object that should have it.
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
    // The expected type is ours, but the value found is the client's and must be made printable.
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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
        _stop: Option<StringOr<BoundedList<String, 2>>>,
    }

    #[derive(Debug, Deserialize)]
    struct Other {
        #[serde(rename = "heat")]
        _heat: Option<f64>,
    }

    fn fault(value: Value) -> (String, Option<String>) {
        let body = value.to_string();
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        match fields.view::<View>() {
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
        assert_eq!(fields.take("size").and_then(RawField::read), Some(1));
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
            #[serde(deserialize_with = "integer::option")]
            one: Option<i64>,
            #[serde(deserialize_with = "integer::optional_list")]
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
        let body = r#"{"size": null, "stop": null, "odd": null}"#;
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        let view: View = fields.view().unwrap();
        assert!(view._size.is_none() && view._stop.is_none());
        assert_eq!(fields.unknown().count(), 0);
    }

    #[test]
    fn unknown_is_what_no_view_knew() {
        let body = json!({
            "size": 1, "heat": 2.0, "odd": 3, "taken": 4,
            "list": [{"role": "a", "name": "x"}, {"role": "b", "name": "y"}],
        });
        let body = body.to_string();
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        fields.view::<View>().unwrap();
        fields.view::<Other>().unwrap();
        assert_eq!(fields.take("taken").and_then(RawField::read), Some(4));
        assert_eq!(fields.unknown().collect::<Vec<_>>(), ["odd", "list[].name"]);
    }

    #[test]
    fn a_body_must_be_sound_where_nobody_reads_it_too() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for unsound in ["1e999", r#""\ud800""#, "01", "[1,]", "tru", &deep(100_000)] {
            for body in [
                format!(r#"{{"odd": {unsound}}}"#),
                format!(r#"{{"list": [{{"role": "a", "odd": {unsound}}}]}}"#),
            ] {
                let error = Fields::parse(body.as_bytes()).err();
                assert!(
                    matches!(error, Some(ApiError::Invalid { param: None, .. })),
                    "{body:.80}"
                );
            }
        }
        let body = format!(r#"{{"odd": {}, "size": 1}}"#, deep(100));
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        assert_eq!(fields.view::<View>().unwrap()._size, Some(1));
    }

    #[test]
    fn of_fields_with_one_name_the_last_counts() {
        let body = r#"{"size": "x", "odd": 1, "s\u0069ze": 2, "odd": null}"#;
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        assert_eq!(fields.view::<View>().unwrap()._size, Some(2));
        assert_eq!(fields.unknown().count(), 0);
    }

    #[test]
    fn an_error_tells_no_place_within_a_value() {
        let (message, _) = fault(json!({"list": [{"role": "a"}, {"role": 3}]}));
        let expected = "`list[1].role`: invalid type: integer `3`, expected a string.";
        assert_eq!(message, expected);
        let (message, _) = fault(json!({"size": "big"}));
        assert_eq!(
            message,
            "`size`: invalid type: string \"big\", expected u32."
        );
    }

    #[test]
    fn of_a_list_that_is_too_long_little_is_kept() {
        let read = |text: &str| serde_json::from_str::<BoundedList<u32, 2>>(text).unwrap().0;
        assert_eq!(read("[]"), [0; 0]);
        assert_eq!(read("[1, 2]"), [1, 2]);
        assert_eq!(read("[1, 2, 3]"), [1, 2, 3]);
        assert_eq!(read(r#"[1, 2, 3, 4, "five", {"six": 7}]"#), [1, 2, 3]);
    }
}
