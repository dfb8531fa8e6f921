//! Errors in the bodies of responses and in streams.

use serde_json::Value;

/// Returns the message of `{"error": {"message": …}}`, or of `{"error": "…"}` as some servers
/// send it; `None` if the value is not an error.
pub fn error_message(body: &Value) -> Option<String> {
    let error = body.get("error").filter(|error| !error.is_null())?;
    let message = error.get("message").unwrap_or(error);
    Some(match message.as_str() {
        Some(text) => text.to_owned(),
        None => message.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_an_object_with_a_message_or_a_text() {
        let message = |body| error_message(&body);
        let object = json!({"error": {"message": "no such model", "type": "x"}});
        assert_eq!(message(object).as_deref(), Some("no such model"));
        assert_eq!(message(json!({"error": "boom"})).as_deref(), Some("boom"));
        let other = json!({"error": {"code": 7}});
        assert_eq!(message(other).as_deref(), Some(r#"{"code":7}"#));
        assert_eq!(message(json!({"error": null, "choices": []})), None);
        assert_eq!(message(json!("text")), None);
    }
}
