//! As much Markdown as the documents use.

use std::collections::BTreeSet;

/// A fenced block of code.
pub(super) struct Block<'t> {
    /// The line of its fence, from 1.
    pub(super) line: usize,
    /// The word behind the fence; empty where there is none.
    pub(super) language: &'t str,
    /// What is in it, without the indentation of its fence.
    pub(super) text: String,
}

/// All fenced blocks.
pub(super) fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block<'_>, usize)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let fence = line.trim_start().strip_prefix("```");
        open = match (open, fence) {
            (None, Some(language)) => {
                let indentation = line.len() - line.trim_start().len();
                let block = Block {
                    line: number,
                    language: language.trim(),
                    text: String::new(),
                };
                Some((block, indentation))
            }
            (Some((block, _)), Some(_)) => {
                blocks.push(block);
                None
            }
            (Some((mut block, indentation)), None) => {
                block
                    .text
                    .push_str(line.get(indentation..).unwrap_or_default());
                block.text.push('\n');
                Some((block, indentation))
            }
            (None, None) => None,
        };
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// The lines outside of blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        !in_block && !fence
    })
}

/// The targets of all links and pictures, `[...](target)`, outside of code.
pub(super) fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        // Every second piece is inline code.
        for piece in line.split('`').step_by(2) {
            let targets = piece.split("](").skip(1);
            links.extend(
                targets
                    .filter_map(|rest| rest.split_once(')'))
                    .map(|(target, _)| target.to_owned()),
            );
        }
    }
    links
}

/// The anchors of all headings, as the usual viewers make them.
pub(super) fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter_map(|line| {
        line.trim_start_matches('#')
            .strip_prefix(' ')
            .filter(|_| line.starts_with('#'))
    });
    headings
        .map(|heading| {
            let kept = heading.trim().to_lowercase();
            let kept = kept
                .chars()
                .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
            kept.map(|letter| if letter == ' ' { '-' } else { letter })
                .collect()
        })
        .collect()
}

/// The rows of every table whose first column has this title, as trimmed cells.
pub(super) fn table_rows(text: &str, first: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in prose(text) {
        let Some(row) = line
            .strip_prefix('|')
            .and_then(|line| line.trim_end().strip_suffix('|'))
        else {
            inside = false;
            continue;
        };
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().to_owned()).collect();
        if cells[0] == first {
            inside = true;
        } else if inside && !cells[0].starts_with("--") {
            rows.push(cells);
        }
    }
    rows
}
