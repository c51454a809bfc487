//! What is printed and kept: tables with a unit in every head, the targets beside what was reached, and the machine.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

/// One measurement's report, in Markdown.
pub struct Report {
    name: &'static str,
    text: String,
    targets: Table,
}

impl Report {
    pub fn new(name: &'static str, title: &str) -> Self {
        say(&format!("\n# {title}\n"));
        let targets = Table::new(&["what", "measured", "target", "met"]);
        Self { name, text: format!("# {title}\n"), targets }
    }

    pub fn text(&mut self, text: &str) {
        self.add(&format!("\n{text}\n"));
    }

    pub fn table(&mut self, title: &str, table: &Table) {
        self.add(&format!("\n## {title}\n\n{table}"));
    }

    pub fn target(&mut self, what: &str, measured: &str, target: &str, met: bool) {
        self.targets.row([what.into(), measured.into(), target.into(), if met { "yes" } else { "**no**" }.into()]);
    }

    /// Prints the targets and the machine, and keeps the report in a folder if there is one.
    pub fn end(mut self, machine: &str, folder: Option<&PathBuf>) -> anyhow::Result<()> {
        if !self.targets.rows.is_empty() {
            let targets = std::mem::replace(&mut self.targets, Table::new(&[]));
            self.table("Targets", &targets);
        }
        self.add(&format!("\n{machine}"));
        let Some(folder) = folder else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let file = folder.join(format!("{}.md", self.name));
        fs::write(&file, &self.text)?;
        say(&format!("\nwritten to {}\n", file.display()));
        Ok(())
    }

    fn add(&mut self, text: &str) {
        say(text);
        self.text.push_str(text);
    }
}

/// Rows under heads; the first column is text, the others are numbers and stand to the right.
pub struct Table {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(heads: &[&str]) -> Self {
        Self { heads: heads.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |at: usize| {
            let cells = self.rows.iter().chain([&self.heads]).filter_map(|row| row.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default().max(3)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let mut line = |cells: &[String]| {
            let mut line = String::from("|");
            for (at, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let _ = if at == 0 { write!(line, " {cell:<width$} |") } else { write!(line, " {cell:>width$} |") };
            }
            writeln!(f, "{line}")
        };
        line(&self.heads)?;
        let rule = |(at, width): (usize, &usize)| {
            if at == 0 { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" }
        };
        line(&widths.iter().enumerate().map(rule).collect::<Vec<_>>())?;
        self.rows.iter().try_for_each(|row| line(row))
    }
}

/// A number with three digits or so.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// Writes to a terminal or a pipe that may be gone.
pub fn say(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
