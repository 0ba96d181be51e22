//! The declarations of the header, as far as the tests need them. The header is generated, so its shape is known.

/// A variable of a declaration: `const char *path` is of type `const char *`.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    pub kind: String,
    pub name: String,
}

#[derive(Debug)]
pub struct Struct {
    pub name: String,
    pub fields: Vec<String>,
}

#[derive(Debug)]
pub struct Function {
    pub result: String,
    pub name: String,
    pub parameters: Vec<Variable>,
}

#[derive(Debug, Default)]
pub struct Declarations {
    pub structs: Vec<Struct>,
    /// Of all enums.
    pub constants: Vec<String>,
    pub functions: Vec<Function>,
}

/// The text without comments, preprocessor lines and the lines around for C++.
fn code(header: &str) -> String {
    let start = header.find("*/").map_or(0, |end| end + 2);
    let mut code = String::new();
    for line in header[start..].lines() {
        let line = line.split("//").next().unwrap_or_default();
        let outside = line.trim_start().starts_with(['#', '/']) || line.contains("extern \"C\"");
        if !outside {
            code.push_str(line.trim());
            code.push(' ');
        }
    }
    code
}

fn variable(text: &str) -> Variable {
    let text = text.trim();
    let bare = text.split('[').next().unwrap_or_default().trim_end();
    let start = bare.rfind(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(0, |at| at + 1);
    Variable { kind: bare[..start].trim().to_owned(), name: bare[start..].to_owned() }
}

pub fn parse(header: &str) -> Declarations {
    let code = code(header);
    let mut found = Declarations::default();
    let mut rest = code.as_str();
    while let Some(end) = rest.find(';') {
        let statement = match rest[..end].find('{') {
            Some(open) => {
                let close = open + rest[open..].find('}').unwrap();
                &rest[..close + rest[close..].find(';').unwrap()]
            }
            None => &rest[..end],
        };
        rest = &rest[statement.len() + 1..];
        let statement = statement.trim();
        if let Some((head, body)) = statement.split_once('{') {
            let (body, name) = body.split_once('}').unwrap();
            if head.contains("struct") {
                let fields = body.split(';').map(|f| variable(f).name).filter(|f| !f.is_empty()).collect();
                found.structs.push(Struct { name: name.trim().to_owned(), fields });
            } else {
                let names = body.split(',').filter_map(|line| line.split('=').next());
                found.constants.extend(names.map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()));
            }
        } else if let (Some((head, parameters)), false) = (statement.split_once('('), statement.starts_with("typedef"))
        {
            let head = variable(head);
            let parameters = parameters.trim_end_matches(')').split(',');
            let parameters = parameters.filter(|p| p.trim() != "void").map(variable).collect();
            found.functions.push(Function { result: head.kind, name: head.name, parameters });
        }
    }
    found
}
