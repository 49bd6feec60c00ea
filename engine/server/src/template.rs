//! Chat templates: which one a model gets, and rendering it.
//!
//! Templates come from untrusted files: rendering is bounded in steps, depth and output size.

mod builtin;

use std::fmt;
use std::io;

use minijinja::value::{Kwargs, Value as JinjaValue};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

pub use builtin::builtin_names;
use builtin::{BITNET, CHATML, builtin};

use crate::clock;

/// Instructions one rendering may take.
const FUEL: u64 = 20_000_000;
/// Nested calls in a template.
const RECURSION: usize = 64;
/// A template's text, in bytes.
const TEXT_BYTES: usize = 1 << 20;
/// Rendered prompt, in bytes.
const OUTPUT_BYTES: usize = 64 << 20;
const NAME: &str = "chat";

/// A template that does not parse or does not render.
#[derive(Debug, thiserror::Error)]
#[error("chat template: {0}")]
pub struct TemplateError(String);

impl From<Error> for TemplateError {
    fn from(error: Error) -> Self {
        let line = error
            .line()
            .map(|line| format!(" (line {line})"))
            .unwrap_or_default();
        let text = match error.detail() {
            Some(detail) => detail.to_owned(),
            None => error.kind().to_string(),
        };
        TemplateError(format!("{text}{line}"))
    }
}

/// Where a template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    /// Asked for by name.
    Builtin(&'static str),
    /// Text given in the settings.
    Given,
    /// The model file's own.
    Model,
    /// Built in, in place of the model file's wrong one.
    InPlaceOfModels(&'static str),
    /// Built in, because the model file has none.
    Fallback(&'static str),
}

impl fmt::Display for TemplateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TemplateSource::Builtin(name) => write!(f, "`{name}`, asked for"),
            TemplateSource::Given => write!(f, "given in the settings"),
            TemplateSource::Model => write!(f, "the model file's"),
            TemplateSource::InPlaceOfModels(name) => {
                write!(
                    f,
                    "`{name}`, in place of the model file's, which is wrong for the model"
                )
            }
            TemplateSource::Fallback(name) => write!(f, "`{name}`, the model file has none"),
        }
    }
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct TemplateFacts<'a> {
    /// `general.architecture`
    pub architecture: &'a str,
    /// `tokenizer.chat_template`
    pub model_template: Option<&'a str>,
    /// `<|eot_id|>` is in the vocabulary.
    pub has_eot_id: bool,
}

/// A compiled template.
pub struct ChatTemplate {
    env: Environment<'static>,
    text: String,
    source: TemplateSource,
    knows_tools: bool,
}

impl ChatTemplate {
    /// Follows `asked` (a name or Jinja text), then the model, then the rules for models with a wrong or no template.
    ///
    /// # Errors
    /// When `asked` does not parse. A model's own template that does not parse is replaced, with a warning.
    pub fn choose(asked: Option<&str>, facts: TemplateFacts<'_>) -> Result<Self, TemplateError> {
        if let Some(asked) = asked {
            return match builtin(asked.trim()) {
                Some((name, text)) => Self::compile(text, TemplateSource::Builtin(name)),
                None if looks_like_a_name(asked) => Err(TemplateError(format!(
                    "`{asked}` is unknown; built in are {}",
                    builtin_names().collect::<Vec<_>>().join(", ")
                ))),
                None => Self::compile(asked, TemplateSource::Given),
            };
        }
        let bitnet = facts.architecture.starts_with("bitnet") && facts.has_eot_id;
        match facts.model_template {
            // The official 2B-4T file's template renders the end token after `BITNETAssistant: ` and drops system messages.
            Some(text) if text.contains("BITNET") => {
                Self::compile(BITNET, TemplateSource::InPlaceOfModels("bitnet"))
            }
            Some(text) if !text.trim().is_empty() => Self::compile(text, TemplateSource::Model)
                .or_else(|error| {
                    tracing::warn!("the model file's {error}");
                    Self::fallback(bitnet)
                }),
            _ => Self::fallback(bitnet),
        }
    }

    fn fallback(bitnet: bool) -> Result<Self, TemplateError> {
        match bitnet {
            true => Self::compile(BITNET, TemplateSource::Fallback("bitnet")),
            false => Self::compile(CHATML, TemplateSource::Fallback("chatml")),
        }
    }

    fn compile(text: &str, source: TemplateSource) -> Result<Self, TemplateError> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_keep_trailing_newline(false);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_recursion_limit(RECURSION);
        env.set_fuel(Some(FUEL));
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", |format: String| {
            clock::strftime_now(&format)
        });
        env.add_filter("tojson", tojson);
        if text.len() > TEXT_BYTES {
            let problem = format!("{} bytes long, at most {TEXT_BYTES} are read", text.len());
            return Err(TemplateError(problem));
        }
        env.add_template_owned(NAME, without_generation_tags(text))?;
        let names = env.get_template(NAME)?.undeclared_variables(false);
        let knows_tools = names.contains("tools") && text.contains("<tool_call>");
        Ok(ChatTemplate {
            env,
            knows_tools,
            text: text.to_owned(),
            source,
        })
    }

    /// The template's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// It writes the list of tools itself, and asks for calls in the `<tool_call>` form.
    pub fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// Where it comes from.
    pub fn source(&self) -> &TemplateSource {
        &self.source
    }

    /// Renders with these variables.
    ///
    /// # Errors
    /// The template's own refusal (`raise_exception`), or one of the bounds.
    pub fn render(&self, variables: &Map<String, Value>) -> Result<String, TemplateError> {
        let mut out = Bounded(Vec::new());
        self.env
            .get_template(NAME)?
            .render_captured_to(variables, &mut out)?;
        String::from_utf8(out.0).map_err(|_| TemplateError("the output is not UTF-8".into()))
    }
}

/// A buffer that refuses to grow beyond [`OUTPUT_BYTES`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES {
            return Err(io::Error::other("the rendered prompt is too large"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// How `tojson` writes.
struct JsonStyle {
    indent: Option<usize>,
    item_end: String,
    key_end: String,
    sorted: bool,
}

/// JSON with Python's spacing and without HTML escapes, as templates were written for.
fn tojson(value: JinjaValue, kwargs: Kwargs) -> Result<JinjaValue, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let sorted: Option<bool> = kwargs.get("sort_keys")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    let (item_end, key_end) = match separators.as_deref() {
        Some([item_end, key_end]) => (item_end.clone(), key_end.clone()),
        _ if indent.is_some() => (",".into(), ": ".into()),
        _ => (", ".into(), ": ".into()),
    };
    let style = JsonStyle {
        indent: indent.map(|n| n.min(16)),
        item_end,
        key_end,
        sorted: sorted.unwrap_or(false),
    };
    let value = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut out = String::new();
    python_json(&value, &style, 0, &mut out);
    Ok(JinjaValue::from_safe_string(out))
}

fn python_json(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) {
    let mut entries: Vec<(Option<&String>, &Value)> = match value {
        Value::Array(items) => items.iter().map(|item| (None, item)).collect(),
        Value::Object(map) => map.iter().map(|(key, item)| (Some(key), item)).collect(),
        scalar => return out.push_str(&scalar.to_string()),
    };
    if style.sorted {
        // Keys of an object; items of an array have none and stay.
        entries.sort_by_key(|(key, _)| *key);
    }
    let (open, close) = if value.is_array() {
        ('[', ']')
    } else {
        ('{', '}')
    };
    out.push(open);
    for (i, (key, item)) in entries.iter().enumerate() {
        if i > 0 {
            out.push_str(&style.item_end);
        }
        new_line(style.indent, depth + 1, out);
        if let Some(key) = key {
            out.push_str(&Value::from(key.as_str()).to_string());
            out.push_str(&style.key_end);
        }
        python_json(item, style, depth + 1, out);
    }
    if !entries.is_empty() {
        new_line(style.indent, depth, out);
    }
    out.push(close);
}

fn new_line(indent: Option<usize>, depth: usize, out: &mut String) {
    if let Some(width) = indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', width * depth));
    }
}

/// `{% generation %}` marks what training learns from; it prints nothing.
fn without_generation_tags(text: &str) -> String {
    let mut out = text.to_owned();
    for word in ["generation", "endgeneration"] {
        for (open, close) in [
            ("{% ", " %}"),
            ("{%- ", " %}"),
            ("{% ", " -%}"),
            ("{%- ", " -%}"),
        ] {
            let tag = format!("{open}{word}{close}");
            let nothing = format!("{open}if true{close}{open}endif{close}");
            out = out.replace(&tag, &nothing);
        }
    }
    out
}

fn looks_like_a_name(text: &str) -> bool {
    text.len() <= 40
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FACTS: TemplateFacts<'_> = TemplateFacts {
        architecture: "bitnet-b1.58",
        model_template: None,
        has_eot_id: true,
    };

    fn variables() -> Map<String, Value> {
        let value = json!({
            "messages": [
                {"role": "system", "content": " Be brief. "},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Bye"},
            ],
            "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>",
        });
        value.as_object().unwrap().clone()
    }

    fn render(template: &str) -> Result<String, TemplateError> {
        ChatTemplate::choose(Some(template), FACTS)?.render(&variables())
    }

    #[test]
    fn builtin_templates() {
        for (name, expected) in [
            (
                "bitnet",
                "<s>System: Be brief.<|eot_id|>User: Hi<|eot_id|>Assistant: Hello<|eot_id|>User: Bye<|eot_id|>Assistant: ",
            ),
            (
                "chatml",
                "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                "llama2",
                "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]",
            ),
            (
                "falcon3",
                "<|system|>\n Be brief. \n<|user|>\nHi\n<|assistant|>\nHello</s>\n<|user|>\nBye\n<|assistant|>\n",
            ),
            (
                "gemma",
                "<s><start_of_turn>user\n Be brief. \n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
            ),
            (
                "mistral-v7",
                "<s>[SYSTEM_PROMPT]  Be brief. [/SYSTEM_PROMPT][INST] Hi[/INST] Hello</s>[INST] Bye[/INST]",
            ),
        ] {
            let expected = if name == "gemma" {
                expected.replace(" Be brief. ", "Be brief.")
            } else {
                expected.to_owned()
            };
            assert_eq!(render(name).unwrap(), expected, "{name}");
        }
        for name in builtin_names() {
            assert!(render(name).unwrap().contains("Bye"), "{name}");
        }
    }

    #[test]
    fn which_one() {
        let choose = |asked, facts| ChatTemplate::choose(asked, facts).unwrap().source().clone();
        let wrong = TemplateFacts {
            model_template: Some("{{ 'BITNETAssistant: ' }}"),
            ..FACTS
        };
        assert_eq!(choose(None, FACTS), TemplateSource::Fallback("bitnet"));
        assert_eq!(
            choose(None, wrong),
            TemplateSource::InPlaceOfModels("bitnet")
        );
        assert_eq!(
            choose(Some("chatml"), wrong),
            TemplateSource::Builtin("chatml")
        );
        assert_eq!(choose(Some("{{ 1 }}"), wrong), TemplateSource::Given);
        let llama = TemplateFacts {
            architecture: "llama",
            ..FACTS
        };
        assert_eq!(choose(None, llama), TemplateSource::Fallback("chatml"));
        assert_eq!(
            choose(
                None,
                TemplateFacts {
                    model_template: Some("{{ 1 }}"),
                    ..llama
                }
            ),
            TemplateSource::Model
        );
        assert_eq!(
            choose(
                None,
                TemplateFacts {
                    model_template: Some("{% if %}"),
                    ..llama
                }
            ),
            TemplateSource::Fallback("chatml")
        );
        assert!(ChatTemplate::choose(Some("chatlm"), FACTS).is_err());
        assert!(ChatTemplate::choose(Some("{% if %}"), FACTS).is_err());
    }

    #[test]
    fn python_isms() {
        for (template, expected) in [
            ("{{ messages[0].content.strip() }}", "Be brief."),
            (
                "{{ messages[0].get('x', 'y') }}{{ messages[1].content.startswith('H') }}",
                "yTrue",
            ),
            (
                "{% for k, v in messages[1].items() %}{{ k }}={{ v }};{% endfor %}",
                "role=user;content=Hi;",
            ),
            (
                "{{ messages[1] | tojson }}",
                r#"{"role": "user", "content": "Hi"}"#,
            ),
            (
                "{{ [1, '<a>'] | tojson(indent=2) }}",
                "[\n  1,\n  \"<a>\"\n]",
            ),
            (
                "{{ {'b': 1, 'a': [2]} | tojson(sort_keys=true, separators=(',', ':')) }}",
                r#"{"a":[2],"b":1}"#,
            ),
            (
                "{{ ' x '.lstrip() }}{{ ' y '.rstrip() }}{{ 'a,b'.split(',')[1] }}{{ 'ab'.endswith('b') }}",
                "x  ybTrue",
            ),
            (
                "{{ 'ab'.upper() }}{{ 'a b'.title() }}{{ 'ab'.replace('a', 'c') }}{{ messages[1].keys() | list | first }}",
                "ABA Bcbrole",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}\
{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ messages[0] is mapping }}{{ 'x' is string }}",
                "2TrueTrue",
            ),
            (
                "{{ messages[::-1][0].content }}{{ messages[-1].role }}",
                "Byeuser",
            ),
            (
                "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
                "system",
            ),
            ("{% generation %}x{% endgeneration %}", "x"),
            ("{{ 'hELLO wORLD' | capitalize }}", "Hello world"),
            (
                "{{ messages is iterable }}{{ nothing is defined }}{{ none is none }}",
                "TrueFalseTrue",
            ),
            ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ] {
            assert_eq!(render(template).unwrap(), expected, "{template}");
        }
        assert!(
            render("{{ strftime_now('%Y') }}")
                .unwrap()
                .starts_with("20")
        );
        let refused = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert!(
            refused.to_string().contains("roles must alternate"),
            "{refused}"
        );
    }

    #[test]
    fn bounds() {
        for endless in [
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        ] {
            assert!(render(endless).is_err(), "{endless}");
        }
    }
}
