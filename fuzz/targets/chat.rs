//! A chat template, for a conversation that goes through all roles.
#![no_main]

use deltallm_models::{ChatMessage, ChatTemplate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") else { return };
    let template = template.with_strftime_now(str::to_owned);
    let said = [
        ("system", "Be brief."),
        ("user", " a <b> \"é\"\n"),
        ("assistant", "<think>\n</think>\n\nb"),
        ("user", "c"),
    ];
    let messages = said.map(|(role, content)| ChatMessage::new(role, content));
    for messages in [&messages[..], &messages[1..2], &[]] {
        if let Ok(prompt) = template.render(messages, true) {
            assert!(prompt.len() <= ChatTemplate::MAX_OUTPUT_BYTES);
        }
    }
});
