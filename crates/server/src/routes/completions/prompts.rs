//! The request field `prompt`: one or several texts, or token ids.

use std::fmt;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserializer, SeqAccess, Unexpected, Visitor};
use serde_json::json;

use crate::errors::ApiError;
use crate::fields::{StringOr, integer};
use incant_runtime::PromptInput;

/// The maximum number of prompts per request; the engine's own limit is lower.
const MAX_PROMPTS: usize = 1 << 16;

/// The value of `prompt`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PromptField {
    /// One text.
    Text(String),
    /// A list.
    List(PromptList),
}

/// The elements of a list, sorted as they are parsed: an id takes four bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PromptList {
    /// The elements that are prompts by themselves, at most one more than [`MAX_PROMPTS`].
    prompts: Vec<PromptInput>,
    /// The number of these elements in the request.
    count: usize,
    /// The elements that are ids, which together are one prompt.
    ids: Vec<u32>,
    /// Whether any prompt is an empty list of ids.
    has_empty: bool,
}

impl<'de> Deserialize<'de> for PromptField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let field = StringOr::<PromptList>::deserialize(deserializer)?;
        Ok(match field {
            StringOr::Text(text) => PromptField::Text(text),
            StringOr::List(list) => PromptField::List(list),
        })
    }
}

impl<'de> Deserialize<'de> for PromptList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;
        impl<'de> Visitor<'de> for ListVisitor {
            type Value = PromptList;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<PromptList, A::Error> {
                let mut list = PromptList::default();
                while let Some(item) = items.next_element()? {
                    let prompt = match item {
                        PromptItem::Id(id) => {
                            list.ids.push(id);
                            continue;
                        }
                        PromptItem::Ids(ids) => {
                            list.has_empty |= ids.is_empty();
                            PromptInput::Tokens(ids)
                        }
                        PromptItem::Text(text) => PromptInput::Text(text),
                    };
                    list.count += 1;
                    if list.prompts.len() < MAX_PROMPTS {
                        list.prompts.push(prompt);
                    }
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(ListVisitor)
    }
}

/// An element of a list in `prompt`.
enum PromptItem {
    /// One of several prompts.
    Text(String),
    /// One of several prompts.
    Ids(Vec<u32>),
    /// One token of the only prompt.
    Id(u32),
}

impl<'de> Deserialize<'de> for PromptItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = PromptItem;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string, a token id or a list of token ids")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PromptItem, E> {
                Ok(PromptItem::Text(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<PromptItem, E> {
                let small = u32::try_from(id);
                small
                    .map(PromptItem::Id)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
            }

            fn visit_f64<E: de::Error>(self, id: f64) -> Result<PromptItem, E> {
                match integer::of_float(id).map(u64::try_from) {
                    Some(Ok(id)) => self.visit_u64(id),
                    _ => Err(E::invalid_type(Unexpected::Float(id), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, ids: A) -> Result<PromptItem, A::Error> {
                integer::list(SeqAccessDeserializer::new(ids)).map(PromptItem::Ids)
            }
        }
        deserializer.deserialize_any(ItemVisitor)
    }
}

/// The JSON schema of the values that [`inputs`] accepts, except for the vocabulary's end.
pub(super) fn prompt_schema(generator: &mut SchemaGenerator) -> Schema {
    let id = generator.subschema_for::<u32>();
    let ids = json!({"type": "array", "items": id, "minItems": 1});
    let prompts = json!({"anyOf": [{"type": "string"}, ids]});
    json_schema!({
        "anyOf": [{"type": "string"}, ids, {"type": "array", "items": prompts, "minItems": 1}],
    })
}

/// Returns the prompts of a request, in order, if `check_capacity` accepts their number.
pub(super) fn inputs(
    prompt: PromptField,
    check_capacity: impl FnOnce(usize) -> Result<(), ApiError>,
) -> Result<Vec<PromptInput>, ApiError> {
    let refuse = |message: &str| Err(ApiError::invalid("prompt", message));
    let list = match prompt {
        PromptField::Text(text) => PromptList {
            prompts: vec![PromptInput::Text(text)],
            count: 1,
            ..PromptList::default()
        },
        PromptField::List(list) => list,
    };
    if list.has_empty {
        return refuse("`prompt` holds an empty list of token ids.");
    }
    let prompts = match (list.ids.is_empty(), list.count) {
        (true, 0) => return refuse("`prompt` must not be an empty list."),
        (true, _) => list.prompts,
        (false, 0) => vec![PromptInput::Tokens(list.ids)],
        (false, _) => return refuse("`prompt` mixes single token ids with whole prompts."),
    };
    check_capacity(list.count.max(prompts.len()))?;
    if list.count > MAX_PROMPTS {
        refuse(&format!("`prompt` may hold at most {MAX_PROMPTS} prompts."))
    } else {
        Ok(prompts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> Result<Vec<PromptInput>, ApiError> {
        let field = serde_json::from_str(prompt).expect("a prompt");
        inputs(field, |_| Ok(()))
    }

    #[test]
    fn a_prompt_is_one_or_several() {
        let text = |text: &str| PromptInput::Text(text.to_owned());
        assert_eq!(read("\"a\""), Ok(vec![text("a")]));
        assert_eq!(read("[1, 2.0]"), Ok(vec![PromptInput::Tokens(vec![1, 2])]));
        let both = vec![text("a"), PromptInput::Tokens(vec![3])];
        assert_eq!(read("[\"a\", [3]]"), Ok(both));
        for wrong in ["[]", "[[]]", "[1, \"a\"]", "[1, [2]]"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn of_prompts_without_number_few_are_kept_and_all_are_counted() {
        let many = format!("[{}\"\"]", "\"\",".repeat(2 * MAX_PROMPTS));
        let field: PromptField = serde_json::from_str(&many).expect("a prompt");
        let PromptField::List(list) = &field else {
            panic!("a list");
        };
        assert_eq!(list.prompts.len(), MAX_PROMPTS);
        let mut counted = 0;
        let refused = inputs(field, |count| {
            counted = count;
            Ok(())
        });
        assert!(refused.is_err());
        assert_eq!(counted, 2 * MAX_PROMPTS + 1);
    }
}
