//! Types of field values that serde's own types do not cover.

use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};

/// A `T` that must be written as a JSON object: serde by itself would also read a struct from a
/// list of its fields' values.
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

/// Integers, which may be written as `2.0` too: JSON has only one type of number.
pub(crate) mod integer {
    use super::*;

    /// Reads a field that may be absent, together with `#[serde(default)]`.
    pub(crate) fn option<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<i64>,
    {
        let value = Option::<Integer<T>>::deserialize(deserializer)?;
        Ok(value.map(|Integer(value)| value))
    }

    /// Reads an integer.
    pub(crate) fn of<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<i64>,
    {
        let Integer(value) = Integer::<T>::deserialize(deserializer)?;
        Ok(value)
    }

    /// Reads a list of integers.
    pub(crate) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<i64>,
    {
        let values = Vec::<Integer<T>>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|Integer(value)| value).collect())
    }

    /// Reads a list that may be absent, together with `#[serde(default)]`.
    pub(crate) fn optional_list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<i64>,
    {
        let values = Option::<Vec<Integer<T>>>::deserialize(deserializer)?;
        let plain =
            |values: Vec<Integer<T>>| values.into_iter().map(|Integer(value)| value).collect();
        Ok(values.map(plain))
    }

    /// Returns a number as an integer, if it is one.
    pub(crate) fn of_float(number: f64) -> Option<i64> {
        // Beyond 2^53 not every integer has a float.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
    }

    /// An integer that fits a `T`.
    struct Integer<T>(T);

    impl<'de, T: TryFrom<i64>> Deserialize<'de> for Integer<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct IntegerVisitor<T>(PhantomData<T>);
            impl<T: TryFrom<i64>> Visitor<'_> for IntegerVisitor<T> {
                type Value = Integer<T>;

                fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                    formatter.write_str("an integer")
                }

                fn visit_i64<E: Error>(self, number: i64) -> Result<Integer<T>, E> {
                    let fitting = T::try_from(number);
                    fitting
                        .map(Integer)
                        .map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
                }

                fn visit_u64<E: Error>(self, number: u64) -> Result<Integer<T>, E> {
                    match i64::try_from(number) {
                        Ok(number) => self.visit_i64(number),
                        Err(_) => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
                    }
                }

                fn visit_f64<E: Error>(self, number: f64) -> Result<Integer<T>, E> {
                    match of_float(number) {
                        Some(number) => self.visit_i64(number),
                        None => Err(E::invalid_type(Unexpected::Float(number), &self)),
                    }
                }
            }
            // The messages of `deserialize_i64` for other types are less plain.
            deserializer.deserialize_any(IntegerVisitor(PhantomData))
        }
    }
}

/// A string, or a list of type `L`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StringOr<L> {
    /// The string alone.
    Text(String),
    /// The list.
    List(L),
}

impl<'de, L: Deserialize<'de>> Deserialize<'de> for StringOr<L> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringOrVisitor<L>(PhantomData<L>);
        impl<'de, L: Deserialize<'de>> Visitor<'de> for StringOrVisitor<L> {
            type Value = StringOr<L>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or a list")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<StringOr<L>, E> {
                Ok(StringOr::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<StringOr<L>, A::Error> {
                L::deserialize(SeqAccessDeserializer::new(list)).map(StringOr::List)
            }
        }
        deserializer.deserialize_any(StringOrVisitor(PhantomData))
    }
}

impl<L: JsonSchema> JsonSchema for StringOr<L> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("StringOr{}", L::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let list = generator.subschema_for::<L>();
        schemars::json_schema!({"anyOf": [{"type": "string"}, list]})
    }
}

/// A list of at most `MAX` elements. Of a longer one it keeps one more than that, which shows that
/// it is too long, and drops the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BoundedList<T, const MAX: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedList<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BoundedListVisitor<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedListVisitor<T, MAX> {
            type Value = BoundedList<T, MAX>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while kept.len() <= MAX {
                    match list.next_element()? {
                        Some(element) => kept.push(element),
                        None => return Ok(BoundedList(kept)),
                    }
                }
                while list.next_element::<Skipped>()?.is_some() {}
                Ok(BoundedList(kept))
            }
        }
        deserializer.deserialize_seq(BoundedListVisitor(PhantomData))
    }
}

impl<T: JsonSchema, const MAX: usize> JsonSchema for BoundedList<T, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        Vec::<T>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Vec::<T>::json_schema(generator)
    }
}

/// A value that is validated to its end and not kept. (Serde's `IgnoredAny` accepts numbers out of
/// range, lone surrogates and any depth.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    /// Whether it was a list without elements.
    pub(crate) is_empty_list: bool,
}

impl Skipped {
    const SOME: Skipped = Skipped {
        is_empty_list: false,
    };
}

impl<'de> Deserialize<'de> for Skipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SkippedVisitor;
        impl<'de> Visitor<'de> for SkippedVisitor {
            type Value = Skipped;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("any value")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Skipped, E> {
                Ok(Skipped::SOME)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Skipped, E> {
                Ok(Skipped::SOME)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Skipped, E> {
                Ok(Skipped::SOME)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Skipped, E> {
                Ok(Skipped::SOME)
            }

            fn visit_str<E>(self, _: &str) -> Result<Skipped, E> {
                Ok(Skipped::SOME)
            }

            fn visit_unit<E>(self) -> Result<Skipped, E> {
                Ok(Skipped::SOME)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Skipped, A::Error> {
                let mut is_empty_list = true;
                while list.next_element::<Skipped>()?.is_some() {
                    is_empty_list = false;
                }
                Ok(Skipped { is_empty_list })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Skipped, A::Error> {
                while map.next_entry::<Skipped, Skipped>()?.is_some() {}
                Ok(Skipped::SOME)
            }
        }
        deserializer.deserialize_any(SkippedVisitor)
    }
}
