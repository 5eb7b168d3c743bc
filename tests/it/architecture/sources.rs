//! Reads the crate's sources and says which module names which path.
//!
//! The module tree is followed from `lib.rs`, so that `super::` and names brought in by `use` are
//! resolved to where they lead. What is not seen: names that only a macro's expansion contains, and
//! paths that reach a module through another one's glob import.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// The text of every `.rs` file, by its path relative to `src/`.
pub type Sources = BTreeMap<String, String>;

/// A path that a module names.
#[derive(Debug)]
pub struct Reference {
    /// The module, from the crate's root: `["gate", "step"]`.
    pub module: Vec<String>,
    /// The module's file, relative to `src/`.
    pub file: String,
    /// Its line there.
    pub line: usize,
    /// `["crate", "ledger", "Key"]`, or another crate's path; a glob ends in `*`.
    pub path: Vec<String>,
    /// Where `path` leads once the crate's own re-exports are followed.
    pub origin: Vec<String>,
}

/// Reads all `.rs` files below a directory.
pub fn read(directory: &Path) -> Sources {
    let mut sources = Sources::new();
    let mut open = vec![directory.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(directory).unwrap();
                let text = std::fs::read_to_string(&path).unwrap();
                sources.insert(name.to_str().unwrap().to_owned(), text);
            }
        }
    }
    sources
}

/// Every path that the library's modules name, those under `#[cfg(test)] mod` left out.
///
/// # Errors
/// A sentence that says where the module tree can't be followed.
pub fn references(sources: &Sources) -> Result<Vec<Reference>, String> {
    let mut walk = Walk {
        sources,
        references: Vec::new(),
        scopes: HashMap::new(),
    };
    walk.file("lib.rs", Vec::new())?;
    for reference in &mut walk.references {
        reference.origin = origin(&reference.path, &walk.scopes);
    }
    Ok(walk.references)
}

/// Lines on which the keyword `unsafe` stands.
pub fn unsafe_lines(text: &str) -> Vec<usize> {
    fn collect(tokens: TokenStream, lines: &mut Vec<usize>) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => collect(group.stream(), lines),
                TokenTree::Ident(ident) if ident == "unsafe" => {
                    lines.push(ident.span().start().line);
                }
                _ => {}
            }
        }
    }
    let mut lines = Vec::new();
    collect(text.parse().unwrap(), &mut lines);
    lines
}

/// Names that a module's `use` declarations bring in, and where they lead.
type Aliases = HashMap<String, Vec<String>>;

/// How many aliases are followed before a circle is assumed.
const HOPS: usize = 8;

struct Walk<'a> {
    sources: &'a Sources,
    references: Vec<Reference>,
    scopes: HashMap<Vec<String>, Aliases>,
}

impl Walk<'_> {
    fn file(&mut self, file: &str, module: Vec<String>) -> Result<(), String> {
        let text = &self.sources[file];
        let parsed = syn::parse_file(text).map_err(|error| format!("src/{file}: {error}"))?;
        self.module(file, module, &parsed.items)
    }

    fn module(
        &mut self,
        file: &str,
        module: Vec<String>,
        items: &[syn::Item],
    ) -> Result<(), String> {
        let mut found = Found::default();
        for item in items {
            found.visit_item(item);
        }
        let children: Vec<String> = found
            .modules
            .iter()
            .map(|child| child.ident.to_string())
            .collect();
        let scope = Scope {
            module: &module,
            children: &children,
            aliases: &found.aliases,
        };
        let aliases = found
            .aliases
            .iter()
            .map(|(name, path)| (name.clone(), scope.resolve(path)))
            .collect();
        for (line, path) in &found.paths {
            self.references.push(Reference {
                module: module.clone(),
                file: file.to_owned(),
                line: *line,
                path: scope.resolve(path),
                origin: Vec::new(),
            });
        }
        self.scopes.insert(module.clone(), aliases);
        for child in &found.modules {
            self.child(file, &module, child)?;
        }
        Ok(())
    }

    fn child(&mut self, file: &str, parent: &[String], child: &syn::ItemMod) -> Result<(), String> {
        let line = child.ident.span().start().line;
        let mut module = parent.to_vec();
        module.push(child.ident.to_string());
        if child.attrs.iter().any(|it| it.path().is_ident("path")) {
            return Err(format!(
                "src/{file}:{line}: `#[path]` hides where a module's file is"
            ));
        }
        if let Some((_, items)) = &child.content {
            return self.module(file, module, items);
        }
        let stem = module.join("/");
        let candidates = [format!("{stem}.rs"), format!("{stem}/mod.rs")];
        match candidates
            .iter()
            .find(|name| self.sources.contains_key(*name))
        {
            Some(name) => self.file(name, module),
            None => Err(format!("src/{file}:{line}: no file for this module")),
        }
    }
}

/// What names mean inside one module.
struct Scope<'a> {
    module: &'a [String],
    children: &'a [String],
    aliases: &'a Aliases,
}

impl Scope<'_> {
    fn resolve(&self, path: &[String]) -> Vec<String> {
        let mut path = path.to_vec();
        for _ in 0..HOPS {
            let first = path[0].as_str();
            if first == "self" || first == "super" {
                return self.climb(&path);
            }
            if self.children.iter().any(|child| child == first) {
                return absolute(self.module, &path);
            }
            match self.aliases.get(first) {
                Some(target) if target[0] != path[0] => {
                    path.splice(..1, target.iter().cloned());
                }
                _ => break,
            }
        }
        path
    }

    fn climb(&self, path: &[String]) -> Vec<String> {
        let mut module = self.module;
        let mut rest = path;
        while let Some((first, tail)) = rest.split_first() {
            match first.as_str() {
                "self" => {}
                "super" => module = module.split_last().map_or(module, |(_, parent)| parent),
                _ => break,
            }
            rest = tail;
        }
        absolute(module, rest)
    }
}

fn absolute(module: &[String], rest: &[String]) -> Vec<String> {
    let mut path = vec!["crate".to_owned()];
    path.extend_from_slice(module);
    path.extend_from_slice(rest);
    path
}

/// Follows `pub use` from module to module.
fn origin(path: &[String], scopes: &HashMap<Vec<String>, Aliases>) -> Vec<String> {
    let mut path = path.to_vec();
    for _ in 0..HOPS {
        if path[0] != "crate" {
            break;
        }
        let longest = (1..path.len())
            .rev()
            .find(|end| scopes.contains_key(&path[1..*end]));
        let Some(end) = longest else { break };
        let Some(target) = scopes[&path[1..end]].get(&path[end]) else {
            break;
        };
        if target[..] == path[..=end] {
            break;
        }
        path.splice(..=end, target.iter().cloned());
    }
    path
}

/// Collects what one module names; stops at its child modules.
#[derive(Default)]
struct Found {
    paths: Vec<(usize, Vec<String>)>,
    aliases: Aliases,
    modules: Vec<syn::ItemMod>,
}

impl Found {
    fn name(&mut self, line: usize, path: Vec<String>) {
        if path.len() > 1 || path[0] == "crate" {
            self.paths.push((line, path));
        }
    }

    fn use_tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let extended = |ident: &syn::Ident| {
            let mut path = prefix.to_vec();
            if ident != "self" || path.is_empty() {
                path.push(ident.to_string());
            }
            path
        };
        match tree {
            syn::UseTree::Path(tree) => self.use_tree(&extended(&tree.ident), &tree.tree),
            syn::UseTree::Name(tree) => {
                let path = extended(&tree.ident);
                let name = path[path.len() - 1].clone();
                self.imported(&tree.ident, name, path);
            }
            syn::UseTree::Rename(tree) => {
                self.imported(&tree.ident, tree.rename.to_string(), extended(&tree.ident));
            }
            syn::UseTree::Glob(tree) => {
                let mut path = prefix.to_vec();
                path.push("*".to_owned());
                self.paths
                    .push((tree.star_token.spans[0].start().line, path));
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.use_tree(prefix, tree);
                }
            }
        }
    }

    fn imported(&mut self, ident: &syn::Ident, name: String, path: Vec<String>) {
        self.paths.push((ident.span().start().line, path.clone()));
        self.aliases.insert(name, path);
    }

    /// Paths in the tokens of a macro or an attribute, which the parser leaves as they are.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut open: Option<(usize, Vec<String>)> = None;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    match &mut open {
                        Some((_, path)) if colons == 2 => path.push(ident.to_string()),
                        _ => {
                            self.close(open.take());
                            open = Some((ident.span().start().line, vec![ident.to_string()]));
                        }
                    }
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    // `crate::{a, b}`: taken for everything, which is the strict side.
                    if let Some((_, path)) = &mut open
                        && colons == 2
                        && group.delimiter() == Delimiter::Brace
                    {
                        path.push("*".to_owned());
                    }
                    self.close(open.take());
                    colons = 0;
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.close(open.take());
                    colons = 0;
                }
            }
        }
        self.close(open);
    }

    fn close(&mut self, path: Option<(usize, Vec<String>)>) {
        if let Some((line, path)) = path {
            self.name(line, path);
        }
    }

    /// Paths in an attribute's strings, such as `#[serde(with = "crate::config::duration")]`.
    fn strings(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.strings(group.stream()),
                TokenTree::Literal(literal) => {
                    let line = literal.span().start().line;
                    let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) else {
                        continue;
                    };
                    if let Ok(path) = text.parse::<syn::Path>() {
                        self.name(line, segments(&path));
                    }
                }
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !item.attrs.iter().any(is_test_only) {
            self.modules.push(item.clone());
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let line = path.segments[0].ident.span().start().line;
        self.name(line, segments(path));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.tokens(mac.tokens.clone());
        visit::visit_macro(self, mac);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("doc") {
            return;
        }
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
            self.strings(list.tokens.clone());
        }
        visit::visit_attribute(self, attribute);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in crate::gate)` narrows a name, it doesn't import one.
    }
}

fn segments(path: &syn::Path) -> Vec<String> {
    path.segments
        .iter()
        .map(|segment| segment.ident.to_string())
        .collect()
}

/// Whether the attribute is `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
fn is_test_only(attribute: &syn::Attribute) -> bool {
    fn demands_test(meta: &syn::Meta) -> bool {
        match meta {
            syn::Meta::Path(path) => path.is_ident("test"),
            syn::Meta::List(list) if list.path.is_ident("all") => list
                .parse_args_with(
                    syn::punctuated::Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated,
                )
                .is_ok_and(|all| all.iter().any(demands_test)),
            _ => false,
        }
    }
    attribute.path().is_ident("cfg")
        && attribute
            .parse_args::<syn::Meta>()
            .is_ok_and(|meta| demands_test(&meta))
}
