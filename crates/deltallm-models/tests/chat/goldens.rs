//! Templates of published models, and pieces of Jinja, against Jinja2 as `transformers` sets it up: goldens of
//! `tools/goldens/chat.py`.

use std::fs;
use std::path::Path;

use deltallm_models::{ChatError, ChatMessage, ChatTemplate};
use serde_json::Value as Json;

fn goldens() -> Json {
    serde_json::from_str(include_str!("../fixtures/chat/goldens.json")).unwrap()
}

fn messages(messages: &Json) -> Vec<ChatMessage> {
    let text = |value: &Json| value.as_str().unwrap().to_owned();
    messages
        .as_array()
        .unwrap()
        .iter()
        .map(|message| ChatMessage::new(text(&message[0]), text(&message[1])))
        .collect()
}

/// The day of the goldens.
fn strftime_now(format: &str) -> String {
    let day = match format {
        "%d %B %Y" => "02 January 2026",
        "%B %d, %Y" => "January 02, 2026",
        "%Y-%m-%d" => "2026-01-02",
        other => panic!("{other}"),
    };
    day.to_owned()
}

/// What was rendered, or as in the goldens what the template raised.
fn rendered(template: &ChatTemplate, messages: &[ChatMessage], add_generation_prompt: bool) -> Json {
    match template.render(messages, add_generation_prompt) {
        Ok(prompt) => prompt.into(),
        Err(ChatError::Raised { message }) => serde_json::json!({ "raised": message }),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn templates_of_published_models_equal_transformers() {
    let goldens = goldens();
    for golden in goldens["families"].as_array().unwrap() {
        let field = |name: &str| golden[name].as_str().unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat/families");
        let source = fs::read_to_string(path.join(format!("{}.jinja", field("family")))).unwrap();
        let source = format!("{}{source}", field("before"));
        let template =
            ChatTemplate::new(&source, field("bos"), field("eos")).unwrap().with_strftime_now(strftime_now);
        let conversations = goldens["conversations"].as_array().unwrap();
        for (conversation, expected) in conversations.iter().zip(golden["expected"].as_array().unwrap()) {
            let messages = messages(&conversation["messages"]);
            let prompt = conversation["add_generation_prompt"].as_bool().unwrap();
            let got = rendered(&template, &messages, prompt);
            assert_eq!(got, *expected, "{} {}", field("family"), field("before"));
        }
    }
}

#[test]
fn pieces_of_jinja_equal_transformers() {
    let goldens = goldens();
    let messages = messages(&goldens["messages"]);
    let mut wrong = Vec::new();
    for piece in goldens["pieces"].as_array().unwrap() {
        let (source, expected) = (piece[0].as_str().unwrap(), piece[1].as_str().unwrap());
        let template = ChatTemplate::new(source, "<s>", "</s>");
        let got = template.and_then(|template| template.render(&messages, false));
        if got.as_deref().ok() != Some(expected) {
            wrong.push(format!("{source}\n  expected {expected:?}\n  got      {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} pieces:\n{}", wrong.len(), wrong.join("\n"));
}
