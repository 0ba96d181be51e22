//! Every pointer of every function: NULL where there must be something, and a handle of another type. The program that
//! tries them is made of the header, so that no function can be forgotten.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;

use super::parse::{Function, Variable, parse};
use super::support::{build, folder, header, model, root, silently};

/// Parameters that may be NULL.
const OPTIONAL: [(&str, &str); 13] = [
    ("", "error"),
    ("mmada_model_open", "options"),
    ("mmada_model_open_fd", "options"),
    ("mmada_text_options_init", "model"),
    ("mmada_image_options_init", "model"),
    ("mmada_description_options_init", "model"),
    ("mmada_model_estimate_text", "options"),
    ("mmada_model_estimate_image", "options"),
    ("mmada_context_new", "options"),
    ("mmada_context_score", "options"),
    ("mmada_context_forward", "canceller"),
    ("mmada_generation_step", "step"),
    ("mmada_context_begin_image", "description"),
];

fn is_optional(function: &str, parameter: &str) -> bool {
    OPTIONAL.iter().any(|&(f, p)| p == parameter && (f.is_empty() || f == function))
        || function.starts_with("mmada_context_begin") && parameter == "options"
}

const OPAQUE: [&str; 7] = ["model", "context", "generation", "image", "buffer", "canceller", "error"];

/// `mmada_model` of `const mmada_model *`, if it is a handle.
fn handle(kind: &str) -> Option<&str> {
    let name = kind.strip_prefix("const ").unwrap_or(kind).strip_suffix(" *")?;
    OPAQUE.iter().any(|o| name == format!("mmada_{o}")).then_some(name)
}

/// What is passed where nothing is wrong.
fn valid(function: &Function, index: usize) -> String {
    let Variable { kind, name } = &function.parameters[index];
    let previous = index.checked_sub(1).map(|i| &function.parameters[i]);
    if let Some(handle) = handle(kind) {
        return format!("a_{handle}");
    }
    if let Some(pointee) = kind.strip_suffix(" **") {
        return format!("&new_{pointee}");
    }
    if let Some(pointee) = kind.strip_suffix(" *").map(|k| k.trim_start_matches("const ")) {
        return format!("&a_{pointee}");
    }
    match (name.as_str(), previous) {
        ("struct_size", Some(of)) => format!("sizeof(*(({})0))", of.kind),
        (length, Some(of)) if length.ends_with("_length") && of.kind == "const char *" => "MMADA_NUL_TERMINATED".into(),
        (count, Some(of)) if (count.ends_with("_count") || count == "size") && of.kind.ends_with('*') => "1".into(),
        ("width" | "height" | "columns" | "rows" | "vocab_end", _) => "1".into(),
        _ => "0".into(),
    }
}

fn call(function: &Function, replaced: usize, by: &str) -> String {
    let arguments = (0..function.parameters.len())
        .map(|i| if i == replaced { by.to_owned() } else { valid(function, i) })
        .collect::<Vec<_>>();
    format!("{}({})", function.name, arguments.join(", "))
}

/// The checks of one function, and how many there are.
fn checks(function: &Function, out: &mut String) -> usize {
    let mut count = 0;
    for (i, parameter) in function.parameters.iter().enumerate() {
        if !parameter.kind.ends_with('*') {
            continue;
        }
        count += 1;
        let null = call(function, i, "NULL");
        match function.result.as_str() {
            "mmada_status" if function.name == "mmada_error_status" => {
                writeln!(out, "CHECK({null} == MMADA_INVALID_HANDLE);").unwrap();
            }
            "mmada_status" if is_optional(&function.name, &parameter.name) => {
                writeln!(out, "CHECK({null} != MMADA_NULL_POINTER);").unwrap();
            }
            "mmada_status" => writeln!(out, "CHECK({null} == MMADA_NULL_POINTER);").unwrap(),
            "void" => writeln!(out, "{null};").unwrap(),
            "const char *" if function.name == "mmada_error_message" => {
                writeln!(out, "CHECK({null}[0] == 0);").unwrap();
            }
            _ => writeln!(out, "CHECK({null} == 0);").unwrap(),
        }
        if let (Some(kind), true) = (handle(&parameter.kind), function.result != "void") {
            let other = if kind == "mmada_image" { "a_mmada_model" } else { "a_mmada_image" };
            let call = call(function, i, &format!("(void *){other}"));
            match function.result.as_str() {
                "mmada_status" => writeln!(out, "CHECK({call} == MMADA_INVALID_HANDLE);").unwrap(),
                "const char *" if function.name == "mmada_error_message" => {
                    writeln!(out, "CHECK({call}[0] == 0);").unwrap();
                }
                _ => writeln!(out, "CHECK({call} == 0);").unwrap(),
            }
        }
    }
    count
}

/// The variables that the calls take and their values.
fn variables(functions: &[Function]) -> String {
    let kinds: BTreeMap<String, bool> = functions
        .iter()
        .flat_map(|f| &f.parameters)
        .filter_map(|p| p.kind.strip_suffix(" *").or(p.kind.strip_suffix(" **")))
        .map(|kind| kind.trim_start_matches("const ").trim_end_matches(" *").to_owned())
        .map(|kind| (kind.clone(), OPAQUE.iter().any(|o| kind == format!("mmada_{o}"))))
        .collect();
    let mut text = String::new();
    for (kind, opaque) in kinds {
        match (kind.as_str(), opaque) {
            ("void", _) => {}
            ("char", _) => text.push_str("static const char a_char = 0;\n"),
            (kind, true) => writeln!(text, "static {kind} *a_{kind}; static {kind} *new_{kind};").unwrap(),
            (kind, false) => writeln!(text, "static {kind} a_{kind};").unwrap(),
        }
    }
    text
}

#[test]
fn null_and_foreign_handles_are_a_status_for_every_pointer_of_every_function() {
    let functions = parse(&header()).functions;
    let (mut body, mut count) = (String::new(), 0);
    for function in functions.iter().filter(|f| f.name != "mmada_debug_panic") {
        count += checks(function, &mut body);
    }
    assert!(functions.len() > 70 && count > 180, "{} functions, {count} pointers", functions.len());
    let mut source = std::fs::read_to_string(root().join("tests/capi/nulls.c")).unwrap();
    source = source.replace("/* variables */", &variables(&functions)).replace("/* checks */", &body);
    let folder = folder("nulls");
    std::fs::write(folder.join("nulls.c"), source).unwrap();
    build(&folder.join("nulls.c"), &root().join("include"), &folder.join("nulls"));
    silently(Command::new(folder.join("nulls")).arg(model()));
}
