//! Prints and saves reports: tables with a unit in every heading, the results next to their targets, and the machine.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

/// The report of one benchmark, in Markdown.
pub struct Report {
    name: &'static str,
    text: String,
    targets: Table,
}

impl Report {
    pub fn new(name: &'static str, title: &str) -> Self {
        print_text(&format!("\n# {title}\n"));
        let targets = Table::new(&["what", "measured", "target", "met"]);
        Self { name, text: format!("# {title}\n"), targets }
    }

    pub fn add_text(&mut self, text: &str) {
        self.add(&format!("\n{text}\n"));
    }

    pub fn add_table(&mut self, title: &str, table: &Table) {
        self.add(&format!("\n## {title}\n\n{table}"));
    }

    pub fn add_target(&mut self, what: &str, measured: &str, target: &str, met: bool) {
        self.targets.add_row([what.into(), measured.into(), target.into(), if met { "yes" } else { "**no**" }.into()]);
    }

    /// Prints the targets and the machine, and writes the report to `dir` if it is given.
    pub fn finish(mut self, machine: &str, dir: Option<&PathBuf>) -> anyhow::Result<()> {
        if !self.targets.rows.is_empty() {
            let targets = std::mem::replace(&mut self.targets, Table::new(&[]));
            self.add_table("Targets", &targets);
        }
        self.add(&format!("\n{machine}"));
        let Some(dir) = dir else { return Ok(()) };
        fs::create_dir_all(dir)?;
        let file = dir.join(format!("{}.md", self.name));
        fs::write(&file, &self.text)?;
        print_text(&format!("\nwritten to {}\n", file.display()));
        Ok(())
    }

    fn add(&mut self, text: &str) {
        print_text(text);
        self.text.push_str(text);
    }
}

/// A table with headings. The first column is text; the others are numbers, which are aligned to the right.
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&str]) -> Self {
        Self { headings: headings.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    pub fn add_row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&self.headings]).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default().max(3)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let mut line = |cells: &[String]| {
            let mut line = String::from("|");
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let _ = if column == 0 { write!(line, " {cell:<width$} |") } else { write!(line, " {cell:>width$} |") };
            }
            writeln!(f, "{line}")
        };
        line(&self.headings)?;
        let rule = |(column, width): (usize, &usize)| {
            if column == 0 { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" }
        };
        line(&widths.iter().enumerate().map(rule).collect::<Vec<_>>())?;
        self.rows.iter().try_for_each(|row| line(row))
    }
}

/// Formats a number with about three significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// Writes to stdout. Ignores errors, because the terminal or the pipe may be closed.
pub fn print_text(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
