//! Chat templates against `transformers` 5.23 (`apply_chat_template`), and hostile ones.

mod doubling;
mod goldens;
mod hostile;

use deltallm_models::{ChatError, ChatMessage, ChatTemplate};

const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}";

/// The text and dialogue parts of Llama 3.2's template, with its white space.
const LLAMA: &str = include_str!("../fixtures/chat/llama-3.2.jinja");

type Conversation = (&'static [(&'static str, &'static str)], bool);

const CONVERSATIONS: [Conversation; 3] = [
    (&[("user", "Hi")], true),
    (
        &[
            ("system", "Be brief."),
            ("user", "What is 2 + 2?"),
            ("assistant", "4"),
            ("user", "  And <3 & \"5\"?\n"),
        ],
        true,
    ),
    (&[("user", "a"), ("assistant", "b")], false),
];

fn messages(conversation: &[(&str, &str)]) -> Vec<ChatMessage> {
    conversation.iter().map(|&(role, content)| ChatMessage::new(role, content)).collect()
}

/// Renders ` ab cd ` and `a <i>é</i>`.
fn render(source: &str) -> Result<String, ChatError> {
    let messages = messages(&[("user", " ab cd "), ("assistant", "a <i>é</i>")]);
    ChatTemplate::new(source, "<s>", "</s>")?.render(&messages, false)
}

#[test]
fn smollm2_template_equals_transformers() {
    let template = ChatTemplate::new(SMOLLM2, "<|im_start|>", "<|im_end|>").unwrap();
    let expected = [
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n  And <3 & \"5\"?\n<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
    ];
    for ((conversation, prompt), expected) in CONVERSATIONS.iter().zip(expected) {
        assert_eq!(template.render(&messages(conversation), *prompt).unwrap(), expected);
    }
}

#[test]
fn llama_template_equals_transformers() {
    let template = ChatTemplate::new(LLAMA, "<|begin_of_text|>", "<|eot_id|>").unwrap();
    let expected = [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhat is 2 + 2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd <3 & \"5\"?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>",
    ];
    for ((conversation, prompt), expected) in CONVERSATIONS.iter().zip(expected) {
        assert_eq!(template.render(&messages(conversation), *prompt).unwrap(), expected);
    }
    // Jinja takes a string for iterable, so the content of a tool's message is written as JSON.
    let tool = template.render(&messages(&[("tool", "naïve <b> & \"q\" 's' \n")]), false).unwrap();
    assert!(
        tool.ends_with("ipython<|end_header_id|>\n\n\"naïve <b> & \\\"q\\\" 's' \\n\"<|eot_id|>"),
        "{tool}"
    );
}

#[test]
fn python_methods_filters_and_white_space_equal_transformers() {
    for (source, expected) in [
        (
            "{% for m in messages %}\n  {% if m.content.startswith('a') %}\n[{{ m.content.strip().split(' ')[-1].upper() }}]\n  {% endif %}\n{% endfor %}\nend\n",
            "[<I>É</I>]\nend",
        ),
        ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content= ab cd ;"),
        (
            "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}",
            "[{\"role\": \"user\", \"content\": \" ab cd \"}, {\"role\": \"assistant\", \"content\": \"a <i>é</i>\"}]|{\n  \"role\": \"user\",\n  \"content\": \" ab cd \"\n}",
        ),
        (
            "{{ messages[0]['content'].replace('a','b').rstrip() }}{{ messages[-1]['content'][:2] }}",
            " bb cda ",
        ),
        ("{{ bos_token }}{{ eos_token }}{% if tools is not none %}tools{% endif %}", "<s></s>"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

/// Of none, an undefined name, a text, a list, a dictionary, a number and a range.
#[test]
fn what_is_iterable_and_a_sequence_is_as_in_jinja() {
    let of = |test: &str| {
        let answers = ["none", "nothing", "'ab'", "[1]", "{'a': 1}", "5", "range(3)"]
            .map(|value| format!("{{{{ '1' if {value} is {test} else '0' }}}}"));
        render(&answers.concat()).unwrap()
    };
    assert_eq!(of("iterable"), "0111101");
    assert_eq!(of("sequence"), "0111101");
    assert_eq!(of("mapping"), "0000100");
    // As in published templates.
    let tools = "{% if tools is iterable and tools | length > 0 %}tools{% else %}no tools{% endif %}";
    assert_eq!(render(tools).unwrap(), "no tools");
}

#[test]
fn no_messages() {
    let template = ChatTemplate::new(SMOLLM2, "", "").unwrap();
    assert_eq!(template.render(&[], true).unwrap(), "<|im_start|>assistant\n");
}

#[test]
fn strftime_now_is_there_when_given() {
    let source = "{{ strftime_now('%Y') if strftime_now is defined else 'none' }}";
    assert_eq!(render(source).unwrap(), "none");
    let template =
        ChatTemplate::new(source, "", "").unwrap().with_strftime_now(|format| format!("<{format}>"));
    assert_eq!(template.render(&[], false).unwrap(), "<%Y>");
}

#[test]
fn a_template_that_takes_parts_gets_parts() {
    for (source, expected) in [
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}]", "Hi]"),
        (
            "{% for p in messages[0]['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}",
            "Hi",
        ),
        ("{{ messages[0].content[0].text | upper }}", "HI"),
        (
            "{% if messages[0].content is string %}{{ raise_exception('parts!') }}{% endif %}{{ messages[0].content[0].text }}",
            "Hi",
        ),
        ("{{ messages[0].content if messages[0].content is string else messages[0].content[0].text }}", "Hi"),
        (
            "{% if strftime_now('%Y') %}{% for p in messages[0].content %}{{ p.text }}{% endfor %}{% endif %}",
            "Hi",
        ),
        // Neither is shown.
        ("{{ messages[0].role }} {{ messages[0].content is string }}", "user True"),
    ] {
        let template = ChatTemplate::new(source, "", "").unwrap().with_strftime_now(str::to_owned);
        assert_eq!(template.render(&messages(&[("user", "Hi")]), true).unwrap(), expected, "{source}");
    }
}

#[test]
fn raised_exception_carries_the_templates_words() {
    for source in [
        "{{ raise_exception('roles must alternate') }}",
        "{% macro f() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ f() }}",
    ] {
        let error = render(source).unwrap_err();
        assert!(
            matches!(&error, ChatError::Raised { message } if message == "roles must alternate"),
            "{error}"
        );
    }
}

#[test]
fn syntax_error_names_the_line() {
    let error = render("a\nb\n{% if %}\n").unwrap_err();
    assert!(matches!(error, ChatError::Syntax { line: 3, .. }), "{error}");
    assert!(error.to_string().starts_with("chat template, line 3: expected valid Jinja, got syntax error"));
}

#[test]
fn failure_while_rendering_names_the_line() {
    for source in ["a\n{{ nothing.at.all }}", "a\n{{ unknown() }}", "a\n{{ messages[0].content.fly() }}"] {
        let error = render(source).unwrap_err();
        assert!(matches!(error, ChatError::Render { line: 2, .. }), "{source}: {error}");
    }
}

#[test]
fn source_too_long() {
    let error = render(&" ".repeat(ChatTemplate::MAX_SOURCE_BYTES + 1)).unwrap_err();
    assert!(matches!(error, ChatError::SourceTooLong { .. }));
    render(&" ".repeat(ChatTemplate::MAX_SOURCE_BYTES)).unwrap();
}

#[test]
fn endless_loop_runs_out_of_fuel() {
    for source in [
        "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}{% endmacro %}{{ f() }}",
    ] {
        let error = render(source).unwrap_err();
        assert!(matches!(error, ChatError::OutOfFuel { .. }), "{error}");
    }
}

#[test]
fn endless_recursion() {
    let error = render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").unwrap_err();
    assert!(matches!(error, ChatError::Render { .. } | ChatError::OutOfFuel { .. }), "{error}");
}

#[test]
fn huge_output() {
    let line = "x".repeat(1000);
    let error = render(&format!("{{% for a in range(100000) %}}{line}{{% endfor %}}")).unwrap_err();
    assert!(matches!(error, ChatError::OutputTooLong { .. }), "{error}");
}

#[test]
fn huge_repeated_string() {
    let error = render("{{ 'x' * 100000000000 }}").unwrap_err();
    assert!(matches!(error, ChatError::OutOfFuel { .. }), "{error}");
}

#[test]
fn template_cannot_read_files() {
    for source in ["{% include '/etc/passwd' %}", "{% import 'chat_template' as c %}", "{% extends 'x' %}"] {
        assert!(render(source).is_err(), "{source}");
    }
}
