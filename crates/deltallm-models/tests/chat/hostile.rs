//! Templates that would end the process, or keep it busy, if they could.

use std::thread;
use std::time::{Duration, Instant};

use deltallm_models::{ChatError, ChatMessage, ChatTemplate};

/// On a thread with little stack, as those of servers may be.
fn with_small_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap()
}

fn render(source: &str) -> Result<String, ChatError> {
    ChatTemplate::new(source, "<s>", "</s>")?.render(&[ChatMessage::new("user", "Hi")], false)
}

/// The error of a template, which comes soon.
fn refused(source: &str) -> ChatError {
    let start = Instant::now();
    let error = render(source).expect_err(source);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?} {source}", start.elapsed());
    error
}

/// What is repeated, between what comes before and after it, and how often: so many overflow a stack of 8 MiB.
const EXPRESSIONS: [(&str, &str, &str, usize); 27] = [
    ("{{ ", "-", "1 }}", 19_365),
    ("{{ ", "- ", "x }}", 19_365),
    ("{{ 1", "+1", " }}", 20_121),
    ("{{ x", "-x", " }}", 20_121),
    ("{{ ", "not ", "x }}", 20_000),
    ("{{ x", ".a", " }}", 20_000),
    ("{{ x", "[0]", " }}", 20_000),
    ("{{ x", "[:]", " }}", 20_000),
    ("{{ x", "()", " }}", 20_000),
    ("{{ x", ".a()", " }}", 20_000),
    ("{{ x", "|upper", " }}", 20_000),
    ("{{ x", "|d(1)", " }}", 20_000),
    ("{{ x", " is defined", " }}", 10_000),
    ("{{ x", " is not defined", " }}", 10_000),
    ("{{ x", "~x", " }}", 20_000),
    ("{{ x", "*x", " }}", 20_000),
    ("{{ x", "**x", " }}", 20_000),
    ("{{ x", "%x", " }}", 20_000),
    ("{{ x", " and x", " }}", 20_000),
    ("{{ x", " or x", " }}", 20_000),
    ("{{ x", "==x", " }}", 20_000),
    ("{{ x", " in x", " }}", 20_000),
    ("{{ x", " not in x", " }}", 20_000),
    ("{{ x", " if x else x", " }}", 10_000),
    ("{{ x", " if x", " }}", 10_000),
    ("{% set x", ".a", " = 1 %}", 20_000),
    ("{% filter upper", "|upper", " %}{% endfilter %}", 20_000),
];

#[test]
fn chains_of_operators_are_refused_on_a_small_stack() {
    with_small_stack(|| {
        for (before, repeated, after, times) in EXPRESSIONS {
            for times in [times, 2 * times, 10 * times] {
                let source = format!("{before}{}{after}", repeated.repeat(times));
                let error = ChatTemplate::new(&source, "", "").map(drop).unwrap_err();
                match source.len() > ChatTemplate::MAX_SOURCE_BYTES {
                    true => assert!(matches!(error, ChatError::SourceTooLong { .. }), "{repeated}: {error}"),
                    false => assert!(
                        matches!(error, ChatError::TagTooLong { line: 1, .. } | ChatError::Syntax { .. }),
                        "{repeated}: {error}"
                    ),
                }
            }
        }
    });
}

#[test]
fn the_longest_chains_that_are_accepted_work_on_a_small_stack() {
    with_small_stack(|| {
        for (before, repeated, after, _) in EXPRESSIONS {
            // As many as fit in a tag; such a tag as often as fits in a template.
            let longest = (1..1000).rev().map(|times| format!("{before}{}{after}", repeated.repeat(times)));
            let is_short =
                |tag: &String| !matches!(ChatTemplate::new(tag, "", ""), Err(ChatError::TagTooLong { .. }));
            let Some(tag) = longest.clone().find(is_short) else { continue };
            let start = Instant::now();
            let _ = render(&tag.repeat(ChatTemplate::MAX_SOURCE_BYTES / tag.len()));
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}: {repeated}", start.elapsed());
        }
    });
}

#[test]
fn a_long_branch_is_refused_on_a_small_stack() {
    with_small_stack(|| {
        for times in [1001, 10_000, 20_000] {
            for branch in
                ["{% elif x %}", "{%-elif x-%}", "{%   elif x %}", "{% elif x %}{% if y %}{% endif %}"]
            {
                let source = format!("{{% if x %}}{}{{% endif %}}", branch.repeat(times));
                if source.len() <= ChatTemplate::MAX_SOURCE_BYTES {
                    assert!(
                        matches!(refused(&source), ChatError::TooManyBranches { line: 1, .. }),
                        "{branch}"
                    );
                }
            }
        }
        render(&format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(1000))).unwrap();
    });
}

#[test]
fn nested_brackets_and_blocks_are_refused_on_a_small_stack() {
    with_small_stack(|| {
        for (open, inner, close) in [
            ("(", "1", ")"),
            ("[", "", "]"),
            ("{1:", "1", "}"),
            ("(1,", "1", ")"),
            ("x[", "1", "]"),
            ("x(", "", ")"),
            ("x|d(", "1", ")"),
            ("x is eq(", "1", ")"),
            ("-(", "1", ")"),
            ("not (", "1", ")"),
        ] {
            for depth in [70, 200, 2000, 20_000] {
                let source = format!("{{{{ {}{inner}{} }}}}", open.repeat(depth), close.repeat(depth));
                let error = render(&source).map(drop);
                assert!(depth < 200 || error.is_err(), "{open} {depth}");
            }
        }
        for (open, close) in [
            ("{% if x %}", "{% endif %}"),
            ("{% if x %}{% else %}", "{% endif %}"),
            ("{% for a in x %}", "{% endfor %}"),
            ("{% for a in x %}{% else %}", "{% endfor %}"),
            ("{% with %}", "{% endwith %}"),
            ("{% generation %}", "{% endgeneration %}"),
            ("{% set x %}", "{% endset %}"),
            ("{% filter upper %}", "{% endfilter %}"),
            ("{% macro f() %}", "{% endmacro %}"),
            ("{% call f() %}", "{% endcall %}"),
        ] {
            for depth in [70, 200, 5000] {
                let source = format!("{}{}", open.repeat(depth), close.repeat(depth));
                let result = render(&source);
                assert!(depth < 200 || result.is_err(), "{open} {depth}");
            }
        }
        for target in ["{% set # = 1 %}", "{% for # in x %}{% endfor %}", "{% with # = 1 %}{% endwith %}"] {
            for depth in [100, 2000, 20_000] {
                let name = format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
                let _ = render(&target.replace('#', &name));
            }
        }
    });
}

#[test]
fn values_nested_by_a_loop_work_on_a_small_stack() {
    with_small_stack(|| {
        for wrapped in [
            "[ns.x]",
            "[[[[[[[[[[[[[[[[[[[[ns.x]]]]]]]]]]]]]]]]]]]]",
            "(ns.x,)",
            "{'a': ns.x}",
            "{'a': {'a': {'a': {'a': {'a': ns.x}}}}}",
            "dict(a=ns.x)",
            "namespace(a=ns.x)",
            "[ns.x] * 1 * 1 * 1",
            "[ns.x][::-1]",
            "[ns.x] + [1]",
            "ns.x | batch(1)",
            "ns.x | slice(1)",
            "ns.x | list",
            "[ns.x] | map('list') | list",
            "{'a': ns.x}.items()",
            "{'a': ns.x}.values()",
            "joiner(ns.x)",
            "cycler(ns.x)",
        ] {
            for used in [
                "",
                "{{ ns.x }}",
                "{% set y %}{{ ns.x }}{% endset %}",
                "{{ ns.x ~ '' }}",
                "{{ ns.x | string }}",
                "{{ ns.x | tojson }}",
                "{{ [ns.x] | join }}",
                "{{ ns.x == ns.y }}",
                "{{ ns.x < ns.y }}",
                "{{ {ns.x: 1} }}",
                "{{ [ns.x, ns.y] | unique | list | length }}",
                "{{ [ns.x, ns.y] | sort | length }}",
                "{{ ns.x in [ns.y] }}",
                "{{ ns.x | length }}",
                "{{ raise_exception(ns.x) }}",
            ] {
                let source = format!(
                    "{{% set ns = namespace(x=1, y=1) %}}{{% for i in range(100000) %}}{{% set ns.x = {wrapped} %}}\
                     {{% if i < 200 %}}{{% set ns.y = ns.x %}}{{% endif %}}{{% if i == {{}} %}}{{% break %}}{{% endif %}}{{% endfor %}}{used}"
                );
                for last in ["300", "3000"] {
                    let _ = render(&source.replace("{}", last));
                }
            }
        }
    });
}

#[test]
fn one_instruction_takes_no_memory_that_is_not_paid_for() {
    for source in [
        "{{ [1] | slice(99999999999) | list }}",
        "{{ [1] | slice(99999999) | list }}",
        "{{ [1] | batch(99999999999, 'x') | list }}",
        "{{ [1] | batch(99999999, 'x') | list }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:0999999999d}'.format(1) }}",
        "{{ '{:.999999999f}'.format(1.5) }}",
        "{{ '{0:>99999999}{0:>99999999}'.format(1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '%99999999d' | format(1) }}",
        "{{ '%.99999999f' | format(1.5) }}",
        "{{ '%*d' | format(99999999, 1) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * 'a' }}",
        "{{ ('a' * 1000000) * 1000000 }}",
        "{{ (1, 2) * 1000000000 }}",
        "{{ ([1] * 100000000) | list | length }}",
        "{{ ([1] * 100000000) | join }}",
        "{{ ([1] * 100000000) | sort }}",
        "{{ ([1] * 100000000) | tojson }}",
        "{{ [1] * 100000000 }}",
        "{{ ([1] * 100000000)[::-1] }}",
        "{{ [1] * 99999999999999 }}",
        "{{ range(1000000000) | list }}",
        "{{ range(0, 1000000000, 1) }}",
        "{{ 'a' | indent(1000000000, true) }}",
        "{{ 'a' | indent('x' * 1000000000) }}",
        "{{ ('a\n' * 1000) | indent(1000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a'.center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a'.zfill(1000000000) }}",
        "{{ 'a'.rjust(1000000000) }}",
        "{{ 'a'.expandtabs(1000000000) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
        "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
        "{{ ('b' * 100000).join(['a'] * 100000) }}",
        "{{ (['a'] * 100000) | join('b' * 100000) }}",
        "{{ ('a' * 3000000).split('a') | length }}",
        "{{ ('a ' * 1500000).split() | length }}",
        "{{ ('a\n' * 1500000).splitlines() | length }}",
        "{{ ('a' * 3000000).rsplit('a') | length }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ 2 ** 1000000000 }}",
        "{{ 10 ** 999999999 }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(100) %}{% set ns.x = ns.x * 2 %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(100) %}{% set ns.x = '%s%s' | format(ns.x, ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(100) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(100) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(100) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% set ns = namespace(x=(1, 2)) %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | string }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{% set y %}{{ ns.x }}{% endset %}",
        "{% macro f(x) %}{{ x }}{{ f(x ~ x) }}{% endmacro %}{{ f('aaaaaaaa') }}",
        "{% macro f(x) %}{% for i in range(100000) %}{{ f(x) }}{% endfor %}{% endmacro %}{{ f('aaaaaaaa') }}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}",
        "{% for a in [1] * 100000000 %}{% endfor %}",
        "{% for a in range(100000) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% include 'chat_template' %}",
    ] {
        let error = refused(source);
        // Nothing was made that was not written first.
        assert!(error.to_string().len() < 2000, "{source}");
    }
}

#[test]
fn long_texts_in_a_loop_end_soon() {
    for work in [
        "{% if s == t %}{% endif %}",
        "{% if s < t %}{% endif %}",
        "{% if s in [t, t, t, t] %}{% endif %}",
        "{% set x = s[-1] %}",
        "{% set x = s[:1] %}",
        "{% set x = s[::-999999] %}",
        "{% set x = s.startswith(t) %}",
        "{% set x = s | length %}",
        "{% set x = s | first %}",
        "{% set x = {s: 1} %}",
        "{% set x = [s, t, s, t] | sort %}",
        "{% set x = [s, t, s, t] | unique | list %}",
        "{% set x = s %}",
    ] {
        refused(&format!(
            "{{% set s = 'é' * 400000 ~ 'a' %}}{{% set t = 'é' * 400000 ~ 'a' %}}\
             {{% for i in range(100000) %}}{work}{{% endfor %}}"
        ));
    }
}

#[test]
fn words_of_a_template_are_cut() {
    let error = refused("{{ raise_exception('\x1b[31mé' * 100000) }}");
    assert!(matches!(&error, ChatError::Raised { message } if message.chars().count() == 1001), "{error}");
    let name = "x".repeat(100_000);
    for source in [
        format!("{{{{ a | {name} }}}}"),
        format!("{{{{ '{name}' + 1 - 1 }}}}"),
        format!("{{% {name} %}}"),
        format!("{{{{ {name}() }}}}"),
        format!("{{{{ 'a'.{name}() }}}}"),
        format!("{{{{ {{}}['{name}'].a }}}}"),
        format!("{{% include '{name}' %}}"),
    ] {
        let error = refused(&source).to_string();
        assert!(error.len() < 1200, "{}", error.len());
    }
}

#[test]
fn words_of_a_template_do_nothing_to_a_terminal() {
    for source in [
        "{{ raise_exception('\x1b[31m\u{202e}\nline') }}",
        "{{ 'a' | no\x1b[31m }}",
        "{{ {}['\x1b[31m'].a.b }}",
        "{{ dict(**{'\x1b]0;title\x07': 1}).a() }}",
        "{{ [1] | sort(**{'\x1b[31m': 1}) }}",
    ] {
        let shown = refused(source).to_string();
        assert!(!shown.contains(|letter: char| letter.is_control() || letter == '\u{202e}'), "{shown:?}");
    }
    let error = refused("{{ raise_exception('\x1b[31m\nline') }}");
    assert!(matches!(&error, ChatError::Raised { message } if message == "\x1b[31m\nline"));
    assert_eq!(error.to_string(), r"chat template refuses the conversation: \u{1b}[31m\nline");
}

#[test]
fn a_long_conversation_is_worth_more_than_a_short_one() {
    let source = "{% for m in messages %}{% for i in range(100) %}{% endfor %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    let messages: Vec<ChatMessage> =
        (0..1000).map(|i| ChatMessage::new("user", format!("{i} {}", "word ".repeat(200)))).collect();
    let prompt = template.render(&messages, false).unwrap();
    assert!(prompt.len() > 1_000_000);
    let ten = "{% for i in range(10) %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfor %}";
    let error = ChatTemplate::new(ten, "", "").unwrap().render(&messages, false).unwrap_err();
    assert!(matches!(error, ChatError::OutputTooLong { .. }), "{error}");
}
