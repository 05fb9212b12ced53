//! The plan file as JSON Schema (draft 2020-12), for editors and pipelines.

use serde_json::{Map, Value, json};

use super::fields::{Fields, Kind, PLAN};

/// The schema; equal for equal versions of guardrail. It ends with a line end.
#[must_use]
pub fn schema() -> String {
    let Value::Object(mut root) = object(&PLAN) else { unreachable!("an object is one") };
    root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    root.insert("title".to_owned(), json!("guardrail plan"));
    format!("{:#}\n", Value::Object(root))
}

fn object(fields: &Fields) -> Value {
    let properties: Map<String, Value> = fields
        .fields
        .iter()
        .map(|field| {
            let mut value = kind(&field.kind);
            if let Value::Object(value) = &mut value {
                value.insert("description".to_owned(), json!(field.doc));
            }
            (field.name.to_owned(), value)
        })
        .collect();
    let required: Vec<&str> = fields.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    json!({
        "type": "object",
        "description": fields.doc,
        "additionalProperties": false,
        "properties": properties,
        "required": required,
    })
}

fn kind(kind: &Kind) -> Value {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    match kind {
        Kind::Text => json!({ "type": "string", "minLength": 1 }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Percent => json!({ "type": "number", "minimum": 0, "maximum": 100 }),
        Kind::Word([word]) => json!({ "const": word }),
        Kind::Word(words) => json!({ "enum": words }),
        Kind::Duration => text("^[0-9]+[smhd]$"),
        Kind::Instant => text("^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ].*)?$"),
        Kind::Range => text("^[0-9A-Fa-f.:]+/[0-9]+$"),
        Kind::Port => json!({
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 65_535 },
                text("^[0-9]{1,5}(/(TCP|UDP|SCTP))?$"),
            ]
        }),
        Kind::Workload => text("^[^/*]+/[^/*]+/[^/*]+$"),
        Kind::WorkloadGlob => text("^[^/]+/[^/]+(/[^/]+)?$"),
        Kind::End => text("^([^/*]+/[^/*]+/[^/*]+|[0-9A-Fa-f.:]+(/[0-9]+)?)$"),
        Kind::Flow => text("^.+->.+:[0-9]+/(TCP|UDP)$"),
        Kind::List(of) => json!({ "type": "array", "items": self::kind(of) }),
        Kind::Map(of) => json!({ "type": "object", "additionalProperties": self::kind(of) }),
        Kind::Object(fields) => object(fields),
    }
}
