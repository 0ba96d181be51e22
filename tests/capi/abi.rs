//! What programs that were built yesterday rely on: names, layouts, numbers, and sizes that may only grow.

use std::fmt::Write;
use std::process::Command;

use super::parse::parse;
use super::support::{build, folder, header, library, model, root, silently, succeed};

/// Compares with a committed file; MMADA_WRITE_ABI=1 writes it.
fn compare(name: &str, text: &str) {
    let path = root().join("tests/abi").join(name);
    if std::env::var_os("MMADA_WRITE_ABI").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "{name} was\n{committed}\nand is\n{text}\nAdd to it (MMADA_WRITE_ABI=1), never change it"
    );
}

#[test]
fn the_library_exports_the_functions_of_the_header_and_nothing_else() {
    let output = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut symbols: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    symbols.retain(|&name| !(cfg!(debug_assertions) && name == "mmada_debug_panic"));
    symbols.sort();
    let declared = parse(&header()).functions;
    let mut declared: Vec<&str> = declared.iter().map(|f| f.name.as_str()).collect();
    declared.sort();
    assert_eq!(symbols, declared);
    compare("symbols.txt", &(symbols.join("\n") + "\n"));
}

#[test]
fn structs_and_numbers_are_where_they_were() {
    let declarations = parse(&header());
    let mut source =
        "#include <mmada.h>\n#include <stdio.h>\n#define SIZE(t, f) sizeof ((t *)0)->f\nint main(void) {\n".to_owned();
    for s in &declarations.structs {
        let name = &s.name;
        writeln!(source, "printf(\"{name} %zu\\n\", sizeof({name}));").unwrap();
        for field in &s.fields {
            let print = format!("printf(\"{name}.{field} %zu %zu\\n\"");
            writeln!(source, "{print}, offsetof({name}, {field}), SIZE({name}, {field}));").unwrap();
        }
    }
    for name in &declarations.constants {
        writeln!(source, "printf(\"{name} %d\\n\", (int){name});").unwrap();
    }
    source.push_str("return 0; }\n");
    let folder = folder("layout");
    std::fs::write(folder.join("layout.c"), source).unwrap();
    build(&folder.join("layout.c"), &root().join("include"), &folder.join("layout"));
    let text = String::from_utf8(succeed(&mut Command::new(folder.join("layout"))).stdout).unwrap();
    assert!(declarations.structs.len() >= 15 && declarations.constants.len() >= 40, "{declarations:?}");
    no_padding(&text);
    compare("layout.txt", &text);
}

/// A struct without padding has no bytes that a later field could find garbage of an older program in.
fn no_padding(layout: &str) {
    let mut whole = ("", 0);
    let mut end = 0;
    for line in layout.lines().chain(["end 0"]) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            [_, offset, size] => {
                assert_eq!(offset.parse::<usize>().unwrap(), end, "padding before {line}");
                end += size.parse::<usize>().unwrap();
            }
            [name, number] => {
                assert_eq!(end, whole.1, "padding at the end of {}", whole.0);
                let is_struct = name.starts_with("mmada_");
                (whole, end) = (if is_struct { (name, number.parse().unwrap()) } else { ("", 0) }, 0);
            }
            _ => panic!("{line}"),
        }
    }
}

#[test]
fn a_program_built_with_the_first_header_runs() {
    let (now, first) = (parse(&header()), std::fs::read_to_string(root().join("tests/abi/v0/mmada.h")).unwrap());
    let first = parse(&first);
    // the two differ, or this test would say nothing
    let fields = |all: &[super::parse::Struct]| all.iter().map(|s| s.fields.len()).sum::<usize>();
    assert!(fields(&first.structs) < fields(&now.structs));
    let program = folder("previous").join("previous");
    build(&root().join("tests/abi/previous.c"), &root().join("tests/abi/v0"), &program);
    silently(Command::new(program).arg(model()));
}
