//! The field `logit_bias`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::numbers::number;
use crate::errors::ApiError;
use crate::ranges::LOGIT_BIAS;
use incant_gguf::printable::excerpt;

/// Biases that are added to the logits of tokens. `5` and `05` are the same token: one of them
/// counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Biases {
    of: BTreeMap<u32, f64>,
    /// A key that is not a token id.
    no_id: Option<String>,
}

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BiasesVisitor;
        impl<'de> Visitor<'de> for BiasesVisitor {
            type Value = Biases;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Biases, A::Error> {
                let mut biases = Biases::default();
                while let Some((key, bias)) = map.next_entry::<String, f64>()? {
                    match key.parse() {
                        Ok(id) => _ = biases.of.insert(id, bias),
                        Err(_) => biases.no_id = Some(key),
                    }
                }
                Ok(biases)
            }
        }
        deserializer.deserialize_map(BiasesVisitor)
    }
}

/// The JSON schema of the values that [`biases`] accepts, except for the vocabulary's end.
pub(super) fn biases_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {
            "type": "number",
            "minimum": Value::from(LOGIT_BIAS.min),
            "maximum": Value::from(LOGIT_BIAS.max),
        },
    })
}

/// Checks token ids and ranges.
pub(super) fn biases(biases: Biases, vocabulary: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Biases { of, no_id } = biases;
    let beyond = of.keys().find(|id| **id as usize >= vocabulary);
    if let Some(key) = no_id.or(beyond.map(u32::to_string)) {
        let key = excerpt(&key);
        let message = format!(
            "`logit_bias` names the token `{key}`, but ids run from 0 to {}.",
            vocabulary - 1
        );
        return Err(ApiError::invalid("logit_bias", message));
    }
    let read = |(id, bias)| {
        let bias = number("logit_bias", Some(bias), LOGIT_BIAS)?;
        Ok((id, bias.unwrap_or(0.0)))
    };
    of.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_counts_once_however_often_it_is_named() {
        let names = [("5", 1.0), ("05", 1.0), ("+5", 1.0), ("6", 2.0)];
        let names = names.map(|(id, bias)| format!("\"{id}\": {bias}"));
        let named = format!("{{{}}}", names.join(", "));
        let named = serde_json::from_str(&named).expect("biases");
        assert_eq!(biases(named, 10).unwrap(), [(5, 1.0), (6, 2.0)]);
    }
}
