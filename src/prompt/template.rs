//! Chat templates: Jinja, as checkpoints ship them, rendered so that what people typed cannot be taken for markup.
//!
//! A template never sees the messages. It is given a mark of private-use characters in place of each, and the marks
//! tell afterwards which parts of the output are its own: only there special tokens are recognised.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value, context};

use super::{Message, Role};
use crate::error::{Error, Result};

/// The chat layout of MMaDA: `bos`, then a header and an `<|eot_id|>` around every message, then the header of the
/// answer. The converter writes it into model files.
pub const MMADA_CHAT_TEMPLATE: &str = concat!(
    "{{ bos_token }}",
    "{% for message in messages %}",
    r"{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n' }}",
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}",
    "{% endfor %}",
    r"{{ '<|start_header_id|>assistant<|end_header_id|>\n' }}",
);

/// A chat template of a model.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    file: String,
}

/// A part of a rendered template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// Written by the template: special tokens in it are meant.
    Markup(String),
    /// The content of the message with this index stands here.
    Content(usize),
}

/// Around the index of a message: two characters of plane 15, which is private use.
const OPEN: char = '\u{f4d4d}';
const CLOSE: char = '\u{f4144}';

/// Fuel for one rendering (about one instruction, or a few dozen bytes, each), and more for every message.
const FUEL: u64 = 200_000;
const FUEL_PER_MESSAGE: u64 = 5_000;
const MAX_FUEL: u64 = 1_000_000;
/// Three times the longest of published templates.
const MAX_SOURCE_BYTES: usize = 1 << 16;
/// What a template nests (a long sum, a list in a list in a list) is walked by recursion when it is compiled, printed
/// and dropped. The limits above allow some hundred thousand levels; this holds them. Only touched pages take memory.
const STACK_BYTES: usize = 512 << 20;

impl ChatTemplate {
    /// Checks the syntax of a template. `file` is named in errors.
    pub fn new(source: &str, file: &str) -> Result<Self> {
        let template = ChatTemplate { source: source.to_owned(), file: file.to_owned() };
        if source.len() > MAX_SOURCE_BYTES {
            return Err(template.bad(format!("has {} bytes, the limit is {MAX_SOURCE_BYTES}", source.len())));
        }
        if source.contains([OPEN, CLOSE]) {
            return Err(template.bad("holds characters of the private use area"));
        }
        template.on_large_stack(|| {
            let environment = environment(0).map_err(|e| template.bad(e))?;
            environment.template_from_str(source).map_err(|e| template.bad(format!("is not valid: {e}")))?;
            Ok(())
        })?;
        Ok(template)
    }

    /// MMaDA's own, [`MMADA_CHAT_TEMPLATE`].
    pub fn mmada() -> Self {
        ChatTemplate { source: MMADA_CHAT_TEMPLATE.to_owned(), file: "built in".to_owned() }
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Runs what a file's template could exhaust a usual stack with. Our own template needs no such care.
    fn on_large_stack<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.source == MMADA_CHAT_TEMPLATE {
            return work();
        }
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("mmada-template".to_owned()).stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, work).map_err(|_| Error::OutOfMemory {
                what: "the stack that renders a chat template".to_owned(),
                bytes: STACK_BYTES,
            })?;
            thread.join().unwrap_or_else(|_| Err(self.bad("cannot be rendered")))
        })
    }

    fn bad(&self, reason: impl std::fmt::Display) -> Error {
        Error::format(&self.file, format!("the chat template {reason}"))
    }

    /// Renders a chat up to where the answer begins. `bos` and `eos` are those tokens as text.
    pub(super) fn render(&self, bos: &str, eos: &str, messages: &[Message]) -> Result<Vec<Part>> {
        let fuel = FUEL_PER_MESSAGE.saturating_mul(messages.len() as u64).saturating_add(FUEL).min(MAX_FUEL);
        let rendered = self.on_large_stack(|| {
            let marked: Vec<Value> = (messages.iter().enumerate())
                .map(|(i, m)| context! { role => m.role.name(), content => format!("{OPEN}{i}{CLOSE}") })
                .collect();
            let variables = context! {
                messages => marked, bos_token => bos, eos_token => eos, add_generation_prompt => true,
            };
            environment(fuel)
                .and_then(|environment| environment.template_from_str(&self.source)?.render(variables))
                .map_err(|e| self.bad(format!("fails: {e}")))
        })?;
        let parts = self.split(&rendered, messages.len())?;
        match (0..messages.len()).find(|&i| !parts.contains(&Part::Content(i))) {
            None => Ok(parts),
            Some(i) => Err(self.bad(format!("leaves out message {} ({})", i + 1, messages[i].role.name()))),
        }
    }

    fn split(&self, rendered: &str, messages: usize) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut rest = rendered;
        while let Some((before, after)) = rest.split_once(OPEN) {
            let (index, after) = after.split_once(CLOSE).unwrap_or((after, ""));
            match index.parse() {
                Ok(index) if index < messages => {
                    parts.extend([Part::Markup(before.to_owned()), Part::Content(index)]);
                }
                _ => return Err(self.bad("cuts or changes the messages")),
            }
            rest = after;
        }
        parts.push(Part::Markup(rest.to_owned()));
        match rendered.matches(OPEN).count() == rendered.matches(CLOSE).count() {
            true => Ok(parts),
            false => Err(self.bad("cuts or changes the messages")),
        }
    }
}

impl Role {
    /// As chat templates call it.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// An environment as templates written for Python expect: blocks eat their line, strings have methods.
fn environment<'a>(fuel: u64) -> Result<Environment<'a>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(fuel));
    environment.set_unknown_method_callback(string_method);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
    });
    Ok(environment)
}

/// The methods of Python's strings and dictionaries that chat templates use.
fn string_method(_: &mut State, this: &Value, method: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    let unknown = || minijinja::Error::from(ErrorKind::UnknownMethod);
    if this.kind() == ValueKind::Map && method == "get" {
        let (key, Rest(default)): (Value, Rest<Value>) = minijinja::value::from_args(args)?;
        let found = this.get_item(&key)?;
        return Ok(if found.is_undefined() { default.into_iter().next().unwrap_or(Value::from(())) } else { found });
    }
    let text = this.as_str().ok_or_else(unknown)?;
    let arg = args.first().and_then(Value::as_str);
    Ok(match (method, arg) {
        ("strip", None) => Value::from(super::strip(text)),
        ("lstrip", None) => Value::from(text.trim_start()),
        ("rstrip", None) => Value::from(text.trim_end()),
        ("upper", None) => Value::from(text.to_uppercase()),
        ("lower", None) => Value::from(text.to_lowercase()),
        ("startswith", Some(start)) => Value::from(text.starts_with(start)),
        ("endswith", Some(end)) => Value::from(text.ends_with(end)),
        _ => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[(Role, &str)]) -> Result<Vec<Part>> {
        let messages: Vec<Message> = messages.iter().map(|&(role, text)| Message::new(role, text)).collect();
        ChatTemplate::new(source, "model.gguf")?.render("<s>", "</s>", &messages)
    }

    #[test]
    fn templates_written_for_python_run() {
        let source = "{%- if messages[0]['role'] == 'system' %}\n    {%- set rest = messages[1:] %}\n    \
                      {{- '[' + messages[0].content.strip() + ']' }}\n{%- else %}\n    {%- set rest = messages %}\n\
                      {%- endif %}\n{% for m in rest %}\n  {% if m['role'].startswith('u') and loop.last %}\n\
                      U:{{ m.get('content') | trim }}{{ eos_token }}\n  {% endif %}\n{% endfor %}\n";
        let parts = render(source, &[(Role::System, "brief"), (Role::User, "why?")]).unwrap();
        let markup = |text: &str| Part::Markup(text.to_owned());
        let expected = [markup("["), Part::Content(0), markup("]U:"), Part::Content(1), markup("</s>\n")];
        assert_eq!(parts, expected);
    }

    #[test]
    fn a_failing_template_is_an_error_that_says_why() {
        let user = [(Role::User, "hi")];
        let cases = [
            ("{% for m in messages %}", "is not valid"),
            ("{{ raise_exception('no system role') }}", "no system role"),
            ("{{ messages[0].content.zfill(3) }}", "zfill"),
            ("{{ messages[0]['content'][1:] }}", "cuts or changes"),
            ("{{ messages[0]['content'][:1] }}", "cuts or changes"),
            ("nothing", "leaves out message 1 (user)"),
            ("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "fuel"),
            ("{{ 'x' * 100000000 }}{{ 'x' * 100000000 }}", "fails"),
            ("{{ messages[0].content }}\u{f4d4d}", "private use"),
        ];
        for (source, reason) in cases {
            let message = render(source, &user).unwrap_err().to_string();
            assert!(message.starts_with("model.gguf: the chat template ") && message.contains(reason), "{message}");
        }
        let doubling = format!("{{% set x = 'xxxxxxxx' %}}{}{{{{ x }}}}", "{% set x = x ~ x %}".repeat(40));
        assert!(render(&doubling, &user).unwrap_err().to_string().contains("fuel"));
    }

    #[test]
    fn a_template_cannot_exhaust_the_stack_however_deep_it_nests() {
        let many = vec![(Role::User, "hi"); 200];
        let grow = |item: &str| {
            let loops = "{% for i in range(9) %}{% for j in range(9999) %}".to_owned();
            format!("{{% set ns = namespace(x=[]) %}}{loops}{{% set ns.x = {item} %}}{{% endfor %}}{{% endfor %}}")
        };
        let sources = [
            format!("{}{{{{ ns.x }}}}", grow("[ns.x]")),
            format!("{}{{{{ ns.x == [ns.x] }}}}", grow("{'a': ns.x}")),
            format!("{{{{ 1 {} }}}}", "+1".repeat(30_000)),
            format!("{{{{ a{} }}}}", ".a".repeat(30_000)),
            format!("{{{{ a{} }}}}", "|e".repeat(30_000)),
            format!("{{{{ {}1 }}}}", "not ".repeat(15_000)),
            format!("{{{{ {}1{} }}}}", "[".repeat(30_000), "]".repeat(30_000)),
            "{% if a %}".repeat(6_000),
            format!("{}{{{{ x }}}}", "{% set x=[x] %}".repeat(4_000)),
        ];
        for source in sources {
            let start: String = source.chars().take(60).collect();
            let refused = render(&source, &many).unwrap_err().to_string();
            assert!(
                refused.starts_with("model.gguf: the chat template ") && refused.len() < 2000,
                "{start}: {refused}"
            );
        }
        let long = format!("{{# {} #}}", "x".repeat(MAX_SOURCE_BYTES));
        assert!(render(&long, &many).unwrap_err().to_string().contains("the limit is"));
    }
}
