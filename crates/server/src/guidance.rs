//! The fields `guidance` (classifier-free guidance) and `mix` (mixtures of arms).

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};

use super::errors::ApiError;
use super::fields::Object;
use super::ranges::{GUIDANCE_WEIGHT, MIX_WEIGHT};
use incant_runtime::guidance::MAX_MIX_ARMS;
use incant_runtime::{Guidance, GuidanceError, GuidanceOptions};
use incant_sample::DEFAULT_PLAUSIBILITY;

/// How a guide and other arms shape an answer. The profile decides on absent and null fields.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "GuidanceParameters")]
pub(crate) struct GuidanceFields {
    /// Classifier-free guidance: leads the answer away from the part of the prompt that does not
    /// depend on the question. 0 is off; the `guidance_scale` of other servers is 1 more. A number
    /// is the weight against the question left empty.
    #[schemars(schema_with = "guidance_schema")]
    guidance: Option<GuidanceField>,
    /// Other arms with the same tokenizer that choose the tokens together with this one, each with
    /// a weight: 1 is the other arm alone, a negative weight leads away from it.
    #[schemars(length(max = MAX_MIX_ARMS))]
    mix: Option<Vec<Object<MixField>>>,
}

/// An arm of a mix.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "MixedArm")]
struct MixField {
    /// The arm's id.
    model: String,
    /// The arm's weight.
    #[schemars(range(min = MIX_WEIGHT.min, max = MIX_WEIGHT.max))]
    weight: f64,
}

/// A number, or an object with the details.
#[derive(Clone, Debug)]
enum GuidanceField {
    Weight(f64),
    Whole(GuidanceObject),
}

#[derive(Clone, Debug, Deserialize)]
struct GuidanceObject {
    weight: f64,
    against: Option<String>,
    plausible: Option<f64>,
}

/// The value of `against` for the arm itself without the question.
const QUESTION: &str = "question";

fn guidance_schema(_: &mut SchemaGenerator) -> Schema {
    let weight = json!({
        "type": "number",
        "minimum": Value::from(GUIDANCE_WEIGHT.min),
        "maximum": Value::from(GUIDANCE_WEIGHT.max),
    });
    json_schema!({
        "anyOf": [weight, {
            "type": "object",
            "required": ["weight"],
            "properties": {
                "weight": weight,
                "against": {
                    "type": ["string", "null"],
                    "default": QUESTION,
                    "description": "`question`, which is the arm itself with the last question left empty, or an arm's id.",
                },
                "plausible": {
                    "type": ["number", "null"],
                    "exclusiveMinimum": 0,
                    "maximum": 1,
                    "default": DEFAULT_PLAUSIBILITY,
                    "description": "Only tokens that are at least this fraction as likely as the most likely one \
                        can be chosen; counts where a weight is negative, guidance included.",
                },
            },
        }, {"type": "null"}],
    })
}

impl<'de> Deserialize<'de> for GuidanceField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldVisitor;
        impl<'de> Visitor<'de> for FieldVisitor {
            type Value = GuidanceField;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number or an object")
            }

            fn visit_f64<E: de::Error>(self, weight: f64) -> Result<GuidanceField, E> {
                Ok(GuidanceField::Weight(weight))
            }

            fn visit_i64<E: de::Error>(self, weight: i64) -> Result<GuidanceField, E> {
                Ok(GuidanceField::Weight(weight as f64))
            }

            fn visit_u64<E: de::Error>(self, weight: u64) -> Result<GuidanceField, E> {
                Ok(GuidanceField::Weight(weight as f64))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<GuidanceField, A::Error> {
                GuidanceObject::deserialize(MapAccessDeserializer::new(map))
                    .map(GuidanceField::Whole)
            }
        }
        deserializer.deserialize_any(FieldVisitor)
    }
}

impl From<GuidanceField> for Guidance {
    fn from(field: GuidanceField) -> Guidance {
        match field {
            GuidanceField::Weight(weight) => Guidance::new(weight as f32),
            GuidanceField::Whole(whole) => Guidance {
                weight: whole.weight as f32,
                against: whole.against.filter(|against| against != QUESTION),
                plausible: whole
                    .plausible
                    .map_or(DEFAULT_PLAUSIBILITY, |share| share as f32),
            },
        }
    }
}

impl GuidanceFields {
    /// Returns the guidance and the mix that the fields ask for.
    pub(crate) fn options(self) -> GuidanceOptions {
        let mix = self.mix.unwrap_or_default().into_iter();
        GuidanceOptions {
            guidance: self.guidance.map(Guidance::from),
            mix: mix
                .map(|Object(field)| (field.model, field.weight as f32))
                .collect(),
        }
    }
}

impl From<GuidanceError> for ApiError {
    fn from(error: GuidanceError) -> ApiError {
        let GuidanceError { field, message } = error;
        ApiError::invalid(field.clone(), format!("`{field}`: {message}."))
    }
}
