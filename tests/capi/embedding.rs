//! The C of docs/EMBEDDING.md: every block compiles, every program runs and says or draws what it should.

use std::path::{Path, PathBuf};
use std::process::Command;

use mmada::image;
use mmada::{Context, ContextOptions, DrawRequest, Model};

use super::support::{build, compiler, folder, model, root, succeed};

/// What stands between ```c and ```.
fn blocks() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs/EMBEDDING.md")).unwrap();
    text.split("\n```c\n")
        .skip(1)
        .map(|rest| rest.split_inclusive("```\n").next().unwrap().replace("```\n", ""))
        .collect()
}

/// The program whose first line's comment begins with its name, built.
fn built(name: &str) -> PathBuf {
    let first =
        |block: &String| block.lines().next().is_some_and(|line| line.contains(&format!("/* {name} MODEL.gguf")));
    let found: Vec<String> = blocks().into_iter().filter(first).collect();
    assert_eq!(found.len(), 1, "there is one program {name}");
    let lines = found[0].lines().count();
    assert!(lines <= 15, "{name} has {lines} lines, the page promises 15");
    let folder = folder("embedding");
    let (source, program) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&source, &found[0]).unwrap();
    build(&source, &root().join("include"), &program);
    program
}

fn said(program: &Path, arguments: &[&str]) -> String {
    let output = succeed(Command::new(program).arg(model()).args(arguments));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_block_of_c_in_the_page_compiles_without_a_warning() {
    let blocks = blocks();
    assert!(blocks.len() >= 4, "{} blocks", blocks.len());
    for (i, block) in blocks.iter().enumerate() {
        let file = folder("blocks").join(format!("block{i}.c"));
        std::fs::write(&file, block).unwrap();
        succeed(compiler().args(["-std=c99", "-fsyntax-only", "-I"]).arg(root().join("include")).arg(file));
    }
}

#[test]
fn the_program_that_asks_is_told_the_right_answer() {
    assert_eq!(said(&built("ask"), &["What is 17 + 25?"]), "42\n");
}

#[test]
fn the_program_that_draws_draws_what_the_library_does_and_the_one_that_looks_sees_it() {
    let wish = "a yellow star above a purple ring on a black background";
    let file = folder("embedding").join("drawn.png");
    let _ = std::fs::remove_file(&file);
    let path = file.to_str().unwrap();
    assert_eq!(said(&built("draw"), &[wish, path]), "");

    let model = Model::open(model()).unwrap();
    let context = Context::new(&model, ContextOptions::default()).unwrap();
    let (text, image) = model.draw_options(false);
    let (width, height) = (model.image_size(), model.image_size());
    let request = DrawRequest { prompt: wish.to_owned(), think: false, width, height, count: 1, text, image };
    let mut generation = context.draw(request).unwrap();
    while !generation.step().unwrap().done {}
    assert!(image::open(&file).unwrap() == generation.image(0).unwrap(), "{path} is another picture");

    let look = built("look");
    assert_eq!(said(&look, &[path, "What color is the background?"]), "black\n");
    let output = Command::new(look).arg(super::support::model()).args(["/no/such.png", "What?"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert!(sentence.starts_with("/no/such.png: ") && sentence.lines().count() == 1, "{sentence}");
}

/// The name by which a heading is linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_matches(['#', ' ']).to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_of_the_page_leads_to_something() {
    let page = root().join("docs/EMBEDDING.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let links: Vec<&str> = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() > 20, "{links:?}");
    for link in links {
        let (path, heading) = link.split_once('#').unwrap_or((link, ""));
        let target = if path.is_empty() { page.clone() } else { root().join("docs").join(path) };
        assert!(target.exists(), "{link} leads nowhere");
        if !heading.is_empty() {
            let target = std::fs::read_to_string(target).unwrap();
            let found = target.lines().any(|line| line.starts_with('#') && anchor(line) == heading);
            assert!(found, "{link} leads to no heading");
        }
    }
}
