//! Lists that double: each operation that goes through one, or makes something larger of it, is paid for.

use std::thread;
use std::time::{Duration, Instant};

use deltallm_models::{ChatError, ChatMessage, ChatTemplate};

/// How a value is made of the last one, `ns.x`, twice as large or deeper.
const DOUBLED: [&str; 16] = [
    "ns.x + ns.x",
    "[ns.x, ns.x]",
    "(ns.x, ns.x)",
    "{'a': ns.x, 'b': ns.x}",
    "dict(a=ns.x, b=ns.x)",
    "namespace(a=ns.x, b=ns.x)",
    "[ns.x] + [ns.x]",
    "[ns.x, ns.x][::-1]",
    "[ns.x, ns.x][:]",
    "[ns.x, ns.x] | list",
    "[ns.x, ns.x] | batch(1) | list",
    "[ns.x, ns.x] | slice(2)",
    "{'a': ns.x, 'b': ns.x}.items()",
    "{'a': ns.x, 'b': ns.x}.values()",
    "[{'a': 1, 'b': ns.x}, {'a': 2, 'b': ns.x}] | groupby('a')",
    "[ns.x, ns.x] | map('default', 1)",
];

/// Every operator, filter, test, method and function that looks at what a list holds, or makes a text of it. `x` and `y` are alike,
/// and not the same.
const USED: [&str; 108] = [
    "{{ x }}",
    "{% set z %}{{ x }}{% endset %}",
    "{% filter upper %}{{ x }}{% endfilter %}",
    "{% if x == y %}{% endif %}",
    "{% if x != y %}{% endif %}",
    "{% if x < y %}{% endif %}",
    "{% if x <= y %}{% endif %}",
    "{% if x > y %}{% endif %}",
    "{% if x >= y %}{% endif %}",
    "{% if 0 < x <= y %}{% endif %}",
    "{% if 1 == 1 == x == y %}{% endif %}",
    "{% if x in [y] %}{% endif %}",
    "{% if x not in [y, y] %}{% endif %}",
    "{% if 'a' in x or x in y %}{% endif %}",
    "{% if x in 'text' %}{% endif %}",
    "{% if [1] + [x] == [1] + [y] %}{% endif %}",
    "{% if (x if true else 1) == (y or 1) %}{% endif %}",
    "{% if not x == y %}{% endif %}",
    "{% if - 1 == 2 or x[:] == y[:] %}{% endif %}",
    "{% set z = x ~ '' %}",
    "{% set z = '' ~ x %}",
    "{% set z = 'a' + 'b' ~ x %}",
    "{% set z = {x: 1} %}",
    "{% set z = {1: 1, (x if true else 1): 1} %}",
    "{% set z = {(x, 1): 1} %}",
    "{% set z = {}[x] %}",
    "{% set z = {}[x if true else 1] %}",
    "{% set z = {}.get(x) %}",
    "{% set z = [x, y].count(y) %}",
    "{% set z = [x, y] | sort %}",
    "{% set z = [x, y] | sort(reverse=true) %}",
    "{% set z = [{'a': x}, {'a': y}] | sort(attribute='a') %}",
    "{% set z = [{'a': x}, {'a': y}] | groupby('a') %}",
    "{% set z = [x, y] | unique %}",
    "{% set z = [x, y] | min %}",
    "{% set z = [x, y] | max %}",
    "{% set z = {'a': x, 'b': y} | dictsort(by='value') %}",
    "{% set z = [x] | sum %}",
    "{% set z = [x, y] | sum(start=[]) %}",
    "{% set z = [x] | join %}",
    "{% set z = ['a', 'b'] | join(x) %}",
    "{% set z = ['a', 'b'] | join(d=x) %}",
    "{% set z = [{'a': x}] | join('', attribute='a') %}",
    "{% set z = x | string %}",
    "{% set z = x | tojson %}",
    "{% set z = x | upper %}",
    "{% set z = x | lower %}",
    "{% set z = x | title %}",
    "{% set z = x | capitalize %}",
    "{% set z = x | trim %}",
    "{% set z = 'a' | trim(x) %}",
    "{% set z = x | escape %}",
    "{% set z = x | e %}",
    "{% set z = x | safe %}",
    "{% set z = x | replace('a', 'b') %}",
    "{% set z = 'a' | replace(x, 'b') %}",
    "{% set z = 'a' | replace('a', x) %}",
    "{% set z = 'a' | replace('a', x, count=1) %}",
    "{% set z = x | indent %}",
    "{% set z = x | wordcount %}",
    "{% set z = x | int %}",
    "{% set z = x | float %}",
    "{% set z = x | abs %}",
    "{% set z = x | round %}",
    "{% set z = '%s' | format(x) %}",
    "{% set z = '%(a)s' | format(a=x) %}",
    "{% set z = '%s' % x %}",
    "{% set z = '{}'.format(x) %}",
    "{% set z = '{a}'.format(a=x) %}",
    "{% set z = ','.join([x]) %}",
    "{% set z = 'a'.replace('a', x) %}",
    "{% set z = 'a'.split(x) %}",
    "{% set z = 'a'.strip(x) %}",
    "{% set z = 'a'.startswith(x) %}",
    "{% set z = {} | attr(x) %}",
    "{% set z = [x, y] | map('upper') | list %}",
    "{% set z = [x, y] | map('string') | list %}",
    "{% set z = [1, 2] | map('default', x) | map('upper') | list %}",
    "{% set z = [[x, y]] | map('sort') | list %}",
    "{% set z = [[x, y]] | map('join') | list %}",
    "{% set z = ['a'] | map('replace', 'a', x) | list %}",
    "{% set z = [x] | select('eq', y) | list %}",
    "{% set z = [x] | reject('in', [y]) | list %}",
    "{% set z = [{'a': x}] | selectattr('a', 'equalto', y) | list %}",
    "{% set z = [{'a': x}] | rejectattr('a', 'lt', y) | list %}",
    "{% set z = x is eq(y) %}",
    "{% set z = x is equalto y %}",
    "{% set z = x is ne(y) %}",
    "{% set z = x is lt(y) %}",
    "{% set z = x is le(y) %}",
    "{% set z = x is gt(y) %}",
    "{% set z = x is ge(y) %}",
    "{% set z = x is in [y] %}",
    "{% set z = x is startingwith 'a' %}",
    "{% set z = 'a' is endingwith x %}",
    "{% set z = x is divisibleby y %}",
    "{{ raise_exception(x) }}",
    "{% set z = cycler(x, y) %}{{ z }}",
    "{% set z = joiner(x) %}{{ z }}",
    "{% set z = range(x) %}",
    "{% for i in [1, 2] %}{% if loop.changed(x if i == 1 else y) %}{% endif %}{% endfor %}",
    "{% for i in [x, y] %}{% if loop.changed(i) %}{% endif %}{% endfor %}",
    "{% macro f(a, b) %}{% if a == b %}{% endif %}{% endmacro %}{{ f(x, y) }}",
    "{% set z = x * 2 %}",
    "{% set z = 2 * x %}",
    "{% set z = x[x] %}",
    "{% for a in x recursive %}{{ loop(a) }}{% endfor %}",
    "{% with a = x == y %}{% endwith %}",
];

/// A template that doubles a value so often and then uses it.
fn doubling(doubled: &str, times: usize, used: &str) -> String {
    format!(
        "{{% set ns = namespace(x=[1], y=1) %}}{{% for i in range({times}) %}}{{% set ns.x = {doubled} %}}{{% endfor %}}\
         {{% set x = ns.x %}}{{% set ns.x = [1] %}}{{% for i in range({times}) %}}{{% set ns.x = {doubled} %}}{{% endfor %}}\
         {{% set y = ns.x %}}{used}"
    )
}

/// What comes of a template, which is soon, on a thread with little stack.
fn soon(source: &str) -> Result<String, ChatError> {
    let start = Instant::now();
    let messages = [ChatMessage::new("user", "Hi")];
    let result = ChatTemplate::new(source, "", "").and_then(|template| template.render(&messages, false));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?} {source}", start.elapsed());
    result
}

fn with_small_stack(work: impl FnOnce() + Send + 'static) {
    thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn a_list_that_doubles_ends_soon_whatever_is_done_with_it() {
    with_small_stack(|| {
        for (index, doubled) in DOUBLED.into_iter().enumerate() {
            // The next sizes in two ways.
            let times: &[usize] = if index < 2 { &[40, 80, 400] } else { &[40] };
            for (used, times) in
                USED.into_iter().flat_map(|used| times.iter().map(move |times| (used, *times)))
            {
                let _ = soon(&doubling(doubled, times, used));
            }
        }
    });
}

#[test]
fn what_goes_through_a_list_that_doubled_runs_out_of_instructions() {
    for used in USED {
        // Some of them refuse lists, whatever their size.
        let refuses = soon(&doubling("[ns.x, ns.x]", 2, used)).is_err();
        let result = soon(&doubling("[ns.x, ns.x]", 40, used));
        let is_typed = match result {
            Err(ChatError::OutOfFuel { .. } | ChatError::OutputTooLong { .. }) => true,
            Err(_) => refuses,
            // The tests say no, and nothing is looked at.
            Ok(_) => used.contains("divisibleby"),
        };
        assert!(is_typed, "{used}");
    }
}

#[test]
fn small_lists_are_used_as_in_python() {
    for (source, expected) in [
        (
            "{{ [1, [2]] == [1, [2]] }} {{ [1] + [2] == [1, 2] }} {{ [1] < [2] }} {{ 1 < 2 < 3 }}",
            "True True True True",
        ),
        (
            "{{ 1 in [1] + [2] }} {{ [2] not in [[2]] }} {{ 'a' in {'a': 1} }} {{ 'b' in 'abc' }}",
            "True False True True",
        ),
        ("{{ 'a' ~ [1, 'b'] ~ 1 + 2 }}", "!"),
        ("{{ 'a' ~ [1, 'b'] ~ 1 }}", "a[1, 'b']1"),
        ("{{ 2 * 3 ~ 'a' * 3 }} {{ 1.5e+2 + 1 }} {{ -1 + 2 }} {{ 7 // 2 - 1 }}", "6aaa 151.0 1 2"),
        (
            "{% set a = [3, 1, 2] %}{{ a[1:][0] }}{{ a[-1] }}{{ a[0] }}{{ a[1:] }}{{ a[::-1] }}",
            "123[1, 2][2, 1, 3]",
        ),
        (
            "{% set i = 1 %}{{ 'abc'[i] }}{{ {'k': 5}['k'] }}{{ {'k': [7]}['k'][i - 1] }}{{ {1: 2}[i] }}",
            "b572",
        ),
        (
            "{% set a = {'b': [[1, 2], [3]]} %}{{ a.b[0][1:] }}{{ a['b'][1][0] + a.b.0.1 }}{{ (a.b)[1] }}",
            "[2]5[3]",
        ),
        ("{% for a, b in [(1, 2)] if a < b %}{{ a }}{{ b }}{% endfor %}", "12"),
        ("{% for a in ([1] + [2])[1:] %}{{ a }}{% else %}-{% endfor %}", "2"),
        ("{% for a in [1, [2, 3]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "123"),
        (
            "{{ 'x' if 1 == 2 else 'y' ~ 'z' }} {{ not 1 == 2 }} {{ 1 is eq 1 and 2 is not eq 3 }}",
            "yz True True",
        ),
        ("{{ 3 is in [1, 3] }} {{ 4 is divisibleby 2 }} {{ 'a' is string == true }}", "True True True"),
        ("{{ {'a' ~ 'b': 1, 2: [3]} }} {{ {'a': 1 if true else 2} }}", "{'ab': 1, 2: [3]} {'a': 1}"),
        (
            "{% set ns = namespace(a=[]) %}{% for i in range(3) %}{% set ns.a = ns.a + [i] %}{% endfor %}{{ ns.a }}",
            "[0, 1, 2]",
        ),
        (
            "{% for a in [1, 1, 2] %}{{ loop.changed(a, 1) }}{{ loop.cycle('x', 'y') }}{% endfor %}",
            "TruexFalseyTruex",
        ),
        ("{{ 'a' 'b' ~ \"it's\" ~ 'a\\'b' == 'c' }} {{ 'a-b'|replace('-', '+')|upper }}", "False A+B"),
        (
            "{{ 'abab' | replace('a', 'c', 1) }} {{ 'a\nb' | indent(2) }} {{ ' a ' | trim }} {{ 'xax' | trim('x') }}",
            "cbab a\n  b a a",
        ),
        ("{%- set a = [1] -%}{{- a + a -}}{%- if a == a -%}!{%- endif -%}", "[1, 1]!"),
        ("{{ messages[0]['content'] + messages[-1].content ~ messages | length }}", "HiHi1"),
    ] {
        let result = soon(source);
        match expected {
            "!" => assert!(result.is_err(), "{source}"),
            _ => assert_eq!(result.unwrap(), expected, "{source}"),
        }
    }
}

#[test]
fn a_list_that_is_multiplied_or_a_key_is_refused_by_name() {
    for (source, expected) in [
        ("{{ [1] * 2 }}", "`*`: expected numbers, or a text and a number; a list cannot be multiplied"),
        ("{{ 2 * (1, 2) }}", "a list cannot be multiplied"),
        ("{{ {[1]: 2} }}", "expected a text or a number as key, got sequence"),
        ("{{ '%s' % 'a' }}", "tried to use % operator on unsupported types string and string"),
    ] {
        let error = soon(source).unwrap_err();
        assert!(matches!(error, ChatError::Render { .. }), "{source}: {error}");
        assert!(error.to_string().contains(expected), "{source}: {error}");
    }
}

#[test]
fn a_namespace_that_holds_itself_ends_soon() {
    for used in USED {
        let _ = soon(&format!(
            "{{% set x = namespace(a=1) %}}{{% set y = namespace(a=1) %}}{{% set x.a = y %}}{{% set y.a = x %}}{used}"
        ));
    }
}

#[test]
fn one_step_of_a_loop_that_takes_long_is_paid_for() {
    for work in [
        "{% if s == t %}{% endif %}",
        "{% if [[s]] == [[t]] %}{% endif %}",
        "{% if a == b %}{% endif %}",
        "{% if a in [b] %}{% endif %}",
        "{% set x = a[20000:] | first %}",
        "{% set x = (a + a)[20000:] | first %}",
        "{% set x = range(100000)[99999:] | first %}",
        "{% set x = namespace(d) %}",
        "{% set x = s[-1] %}",
        "{% set x = s[3:4] %}",
        "{% for c in s %}{% break %}{% endfor %}",
        "{% set x = s is lower %}",
        "{% set x = s.isalpha() %}",
        "{% set x = s.strip(t) %}",
        "{% set x = s | trim(t) %}",
        "{% set x = [s, s, s] | map(attribute='300000') | list %}",
        "{% set x = [s, s, s] | selectattr('300000') | list %}",
        "{% set x = ('{0}' * 1000).format(s) %}",
        "{% set x = ('%(a)s' * 1000) | format(a=s) %}",
        "{% set x = s.replace('a', 'b', 1) %}",
        "{% set x = [s] + (['a'] * 0 if false else []) %}",
        "{% set x = a | sort %}",
        "{% set x = [1, 2, 3] | select('in', a) | list %}",
    ] {
        let source = format!(
            "{{% set s = 'é' * 200000 ~ 'a' %}}{{% set t = 'é' * 200000 ~ 'a' %}}{{% set a = range(20000) | list %}}\
             {{% set b = range(20000) | list %}}{{% set d = {{'k': 1}} %}}{{% for i in range(100000) %}}{work}{{% endfor %}}"
        );
        let error = soon(&source).unwrap_err();
        assert!(matches!(error, ChatError::OutOfFuel { .. }), "{work}: {error}");
    }
}

#[test]
fn what_minijinja_cannot_do_is_an_error_and_no_panic() {
    for source in [
        "{% for a in [1] %}{{ loop.cycle() }}{% endfor %}",
        "{% for a in [1] %}{{ loop.cycle(*[]) }}{% endfor %}",
    ] {
        let error = soon(source).unwrap_err();
        assert!(matches!(error, ChatError::Render { .. }), "{source}: {error}");
    }
}

#[test]
fn a_hostile_template_with_a_long_conversation_ends_soon() {
    let messages =
        [ChatMessage::new("user", "é".repeat(2 << 20)), ChatMessage::new("user", "é".repeat(2 << 20))];
    for work in [
        "{% if s == t %}{% endif %}",
        "{% set x = s[-1] %}",
        "{% set x = s.startswith('a') %}",
        "{% for c in s %}{% break %}{% endfor %}",
        "{% set x = messages == messages[:] %}",
        "{% set x = s ~ t %}",
        "{% set x = [s, t] | tojson %}",
    ] {
        let source = format!(
            "{{% set s = messages[0].content %}}{{% set t = messages[1].content %}}\
             {{% for i in range(100000) %}}{{% for j in range(100000) %}}{work}{{% endfor %}}{{% endfor %}}"
        );
        let start = Instant::now();
        let error = ChatTemplate::new(&source, "", "").unwrap().render(&messages, false).unwrap_err();
        assert!(matches!(error, ChatError::OutOfFuel { .. }), "{work}: {error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?} {work}", start.elapsed());
    }
}

#[test]
fn time_grows_with_a_conversation_and_no_faster() {
    let source = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}\
                  {% if loop.first or messages[loop.index0 - 1].role != m.role %}<{{ m.role }}>{% endif %}\
                  {{ '[' + m.content | trim + ']' ~ eos_token }}{% endfor %}";
    let template = ChatTemplate::new(source, "", "</s>").unwrap();
    let time = |turns: usize| {
        let messages: Vec<ChatMessage> = (0..turns)
            .map(|turn| ChatMessage::new(["user", "assistant"][turn % 2], "word ".repeat(200)))
            .collect();
        let start = Instant::now();
        let prompt = template.render(&messages, true).unwrap();
        assert!(prompt.len() > turns * 1000);
        start.elapsed()
    };
    let (short, long) = (time(200), time(1600));
    // Eight times the messages; 64 times the time would be the square.
    assert!(long < 32 * short.max(Duration::from_millis(5)), "{short:?} {long:?}");
}
