//! The OpenAPI 3.1 documents of both ports.
//!
//! Owns what all operations have in common: refusals, credentials, parts of paths, ids. The operations themselves come from
//! the handlers' own descriptions, through the routers that serve them: a route cannot be served and not described.

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;
use utoipa::{PartialSchema, ToSchema};

use super::shapes::RefusalShape;
use crate::domain::dialect::{Dialect, Dialects};

/// A document, ready to be served.
pub type Document = Value;

/// What any operation may answer instead, by status.
const REFUSALS: &[(&str, &str)] = &[
    ("400", "The request cannot be understood, or a field does not fit; `errors` names each."),
    ("401", "No credential, or one that opens nothing. The same for all that is wrong with it."),
    ("403", "Not allowed: the address, the standing of the account, or the role."),
    ("404", "There is no such thing."),
    ("405", "The path is right and the method is not."),
    ("409", "It collides with what is there."),
    ("413", "The body is over the limit."),
    ("423", "The account is locked for a while, which `Retry-After` states."),
    ("429", "Too many calls, or too little left on a meter."),
    ("431", "The head is over the limit."),
    ("503", "Too much to do, or the store cannot write; `Retry-After` states when to try again."),
];

/// The document of what the public port answers itself.
pub fn public(paths: OpenApi) -> Document {
    let about = "What users do for themselves. Everything else on this port goes to an upstream, as the routes say.";
    finish(paths, "tollgate: users", about)
}

/// The document of the side port.
pub fn side(paths: OpenApi) -> Document {
    finish(paths, "tollgate: side port", "What admins and support staff do, and what machines ask.")
}

/// A document without the calls of dialects that are off. Their operations have the dialect's name for a tag.
pub fn while_on(document: &Document, on: Dialects) -> Document {
    let mut shown = document.clone();
    let is_off = |tag: &str| Dialect::ALL.into_iter().any(|dialect| dialect.as_str() == tag && !on.has(dialect));
    if let Some(paths) = shown["paths"].as_object_mut() {
        for item in paths.values_mut().filter_map(Value::as_object_mut) {
            item.retain(|_, operation| !operation["tags"][0].as_str().is_some_and(is_off));
        }
        paths.retain(|_, item| item.as_object().is_some_and(|item| !item.is_empty()));
    }
    shown
}

fn finish(paths: OpenApi, title: &str, about: &str) -> Document {
    let mut document = serde_json::to_value(paths).unwrap_or_default();
    document["openapi"] = "3.1.0".into();
    document["info"] = json!({
        "title": title,
        "description": about,
        "version": env!("CARGO_PKG_VERSION"),
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    });
    add_schemas(&mut document);
    document["components"]["securitySchemes"] = json!({
        "session": {"type": "http", "scheme": "bearer", "description": "The `session_token` that a login answers."},
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, `pe-…`."},
        "staff": {
            "type": "http",
            "scheme": "bearer",
            "description": "The `session_token` of a login on the side port. The role named is the least that is let in.",
        },
    });
    // What one caller sees is part of what another sees, so more than one may fit.
    for schema in document["components"]["schemas"].as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
        let Some(schema) = schema.as_object_mut() else { continue };
        let of_schemas = schema
            .get("oneOf")
            .and_then(Value::as_array)
            .is_some_and(|all| all.iter().all(|one| !one["$ref"].is_null()));
        if of_schemas && let Some(all) = schema.remove("oneOf") {
            schema.insert("anyOf".to_owned(), all);
        }
    }
    document["components"]["responses"] = refusals();
    if let Some(paths) = document["paths"].as_object_mut() {
        for (path, item) in paths {
            for (method, operation) in item.as_object_mut().into_iter().flatten() {
                complete(path, method, operation);
            }
        }
    }
    document
}

fn add_schemas(document: &mut Document) {
    let mut schemas = Vec::new();
    RefusalShape::schemas(&mut schemas);
    schemas.push((RefusalShape::name().into_owned(), RefusalShape::schema()));
    for (name, schema) in schemas {
        document["components"]["schemas"][name] = serde_json::to_value(schema).unwrap_or_default();
    }
}

fn refusals() -> Value {
    let content = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}});
    let response = |about: &str| json!({"description": about, "content": content});
    Value::Object(REFUSALS.iter().map(|(status, about)| (format!("Refused{status}"), response(about))).collect())
}

/// Adds to one operation what its handler need not repeat.
fn complete(path: &str, method: &str, operation: &mut Value) {
    operation["operationId"] = operation_id(path, method).into();
    for (status, _) in REFUSALS {
        let named = &mut operation["responses"][status];
        if named.is_null() {
            *named = json!({"$ref": format!("#/components/responses/Refused{status}")});
        }
    }
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let described = |name: &str| parameters.iter().any(|p| p["in"] == "path" && p["name"] == name);
    let missing: Vec<Value> = parts(path)
        .filter(|name| !described(name))
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
        .collect();
    if !(parameters.is_empty() && missing.is_empty()) {
        operation["parameters"] = parameters.into_iter().chain(missing).collect();
    }
}

/// The names in braces.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

/// Unique, because a method and a path are.
fn operation_id(path: &str, method: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let id = words.fold(method.to_owned(), |id, word| format!("{id}_{word}"));
    if path.ends_with('/') { id + "_" } else { id }
}

/// One route as a document lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedRoute {
    /// In capitals.
    pub method: String,
    /// With its parts in braces.
    pub path: String,
    /// The schemes of which one is asked for, each with the least role; none: anybody may.
    pub credentials: Vec<(String, Option<String>)>,
}

/// The routes of a document: the route table, as the routers have it.
pub fn listed_routes(document: &Document) -> Vec<ListedRoute> {
    let empty = Map::new();
    let paths = document["paths"].as_object().unwrap_or(&empty);
    let mut routes: Vec<ListedRoute> = paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap_or(&empty).iter().map(|(method, operation)| ListedRoute {
                method: method.to_ascii_uppercase(),
                path: path.clone(),
                credentials: credentials(operation),
            })
        })
        .collect();
    routes.sort();
    routes
}

fn credentials(operation: &Value) -> Vec<(String, Option<String>)> {
    let listed = operation["security"].as_array().into_iter().flatten().filter_map(Value::as_object);
    let role = |roles: &Value| roles[0].as_str().map(str::to_owned);
    listed.flat_map(|one| one.iter().map(|(scheme, roles)| (scheme.clone(), role(roles)))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use utoipa::openapi::OpenApi;

    fn public_document() -> Document {
        crate::api::public_document(OpenApi::default())
    }

    fn side_document() -> Document {
        crate::api::side_document(OpenApi::default())
    }

    fn operations(document: &Document) -> Vec<(String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.len() > 5);
        paths.iter().flat_map(|(path, item)| item.as_object().unwrap().values().map(|o| (path.clone(), o))).collect()
    }

    #[test]
    fn every_operation_says_what_it_answers_and_to_whom() {
        for document in [public_document(), side_document()] {
            let mut ids = BTreeSet::new();
            for (path, operation) in operations(&document) {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{id} twice");
                assert!(operation["summary"].is_string(), "{path} has no summary");
                assert!(operation["tags"][0].is_string(), "{path} has no tag");
                assert!(operation["security"].is_array(), "{path} does not say who may call");
                let answers = operation["responses"].as_object().unwrap();
                assert!(answers.keys().any(|status| status.starts_with(['2', '3'])), "{path} never succeeds");
                assert!(answers.contains_key("401") && answers.contains_key("503"), "{path}");
                for name in parts(&path) {
                    let named = operation["parameters"].as_array().unwrap().iter().filter(|p| p["name"] == name);
                    assert_eq!(named.count(), 1, "{path}: {name}");
                }
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(to)) = map.get("$ref") {
                        found.push(to);
                    }
                    map.values().for_each(|inner| references(inner, found));
                }
                Value::Array(list) => list.iter().for_each(|inner| references(inner, found)),
                _ => {}
            }
        }
        for document in [public_document(), side_document()] {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(found.len() > 20);
            for to in found {
                let pointer = to.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{to} leads nowhere");
            }
        }
    }

    #[test]
    fn the_route_table_lists_roles() {
        let routes = listed_routes(&side_document());
        let one = |method: &str, path: &str| {
            routes.iter().find(|r| r.method == method && r.path == path).unwrap().credentials.clone()
        };
        assert_eq!(one("DELETE", "/v1/admin-panel/users/{id}"), [("staff".into(), Some("superadmin".into()))]);
        assert_eq!(one("GET", "/ready"), []);
    }
}
