//! Listings for the terminal: suites, their cases, what a run would do, and kernels.

use std::fmt::Write;

use attn_kernels::cuda::CudaKernel;
use attn_kernels::cuda::resources::Resources;
use attn_kernels::problem::{AttentionProblem, Dtype, Phase};
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle, Width};

use super::units;
use crate::suite::{Estimate, Suite, Support};

/// What `attnbench kernels` knows of one kernel.
#[derive(Clone, Debug, serde::Serialize)]
pub struct KernelListing {
    /// The provider.
    pub provider: &'static str,
    /// Name in case ids.
    pub name: &'static str,
    /// One line: the algorithm and where it comes from.
    pub summary: &'static str,
    /// The dtype that it rounds what it multiplies to, where that is not the problem's: its outputs are judged by that one's tolerance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiplies_in: Option<&'static str>,
    /// What it computes.
    pub supports: Vec<Support>,
}

/// [`KernelListing::multiplies_in`] of a CUDA kernel, found by asking it about a small problem.
pub fn multiplies_in(kernel: &dyn CudaKernel) -> Option<&'static str> {
    let problem = AttentionProblem::softmax(Phase::Prefill, Dtype::Bf16, 1, (1, 1), (64, 64), 64);
    Some(kernel.multiplies_in(&problem)).filter(|&dtype| dtype != problem.dtype).map(Dtype::name)
}

/// A table with one line under its header, as wide as its content and at most `width` columns.
fn table(header: &[&str], width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(width);
    table.set_header(header.iter().map(Cell::new));
    table
}

/// A number, to the right.
fn figure(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Keeps a column's content on one line.
fn keep_whole(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
}

/// A text wrapped to `width` columns, indented by `indent`.
fn paragraph(text: &str, indent: u16, width: u16) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(width);
    table.add_row([text]);
    if let Some(column) = table.column_mut(0) {
        column.set_padding((indent, 0));
        column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(width)));
    }
    table.trim_fmt()
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("{count} {noun}") } else { format!("{count} {noun}s") }
}

/// What compiled kernels take of an architecture's multiprocessor, a line each.
pub fn resources(architecture: &str, kernels: &[Resources], width: u16) -> String {
    let mut table = table(&["kernel", "registers", "spilled", "stack", "static shared"], width);
    for kernel in kernels {
        let figures = [kernel.registers, kernel.spill_bytes, kernel.stack_bytes, kernel.static_shared_bytes];
        let mut row = vec![Cell::new(format!("{} / {}", kernel.module, kernel.entry))];
        row.extend(figures.map(|number| figure(number.to_string())));
        table.add_row(row);
    }
    keep_whole(&mut table, 1..5);
    format!("{architecture}\n{}", table.trim_fmt())
}

/// What the machine code of each kernel is made of, on one architecture. Classes that no kernel has are left out.
pub fn instructions(architecture: &str, kernels: &[Resources], width: u16) -> String {
    let known: Vec<_> = kernels.iter().filter_map(|kernel| Some((kernel, kernel.instructions?.counts()))).collect();
    let classes = attn_kernels::cuda::sass::InstructionMix::default().counts();
    let used: Vec<usize> =
        (0..classes.len()).filter(|&class| known.iter().any(|(_, counts)| counts[class].1 > 0)).collect();
    let mut header = vec!["instructions of"];
    header.extend(used.iter().map(|&class| classes[class].0));
    let mut table = table(&header, width);
    for (kernel, counts) in &known {
        let mut row = vec![Cell::new(format!("{} / {}", kernel.module, kernel.entry))];
        row.extend(used.iter().map(|&class| figure(counts[class].1.to_string())));
        table.add_row(row);
    }
    format!("{architecture}\n{}", table.trim_fmt())
}

/// Suites with the question that each answers.
pub fn suites(suites: &[Suite], width: u16) -> String {
    let mut table = table(&["suite", "cases", "what it answers"], width);
    for suite in suites {
        table.add_row([Cell::new(&suite.name), figure(suite.cases.len().to_string()), Cell::new(&suite.description)]);
    }
    keep_whole(&mut table, [0, 1]);
    table.trim_fmt()
}

/// One suite: each matrix with its reason and its cases. Case ids are never broken, so that they can be copied.
pub fn suite(suite: &Suite, width: u16) -> String {
    let mut text = headline(suite);
    text.push('\n');
    text.push_str(&paragraph(&suite.description, 0, width));
    for matrix in &suite.matrices {
        let _ = write!(text, "\n\n{} ({})\n", matrix.name, plural(matrix.cases, "case"));
        text.push_str(&paragraph(&matrix.reason, 2, width));
        for planned in suite.cases.iter().filter(|planned| planned.matrix == matrix.name) {
            let _ = write!(text, "\n    {}", planned.key());
        }
        if matrix.cases == 0 {
            text.push_str("\n    (every case of it is in an earlier matrix)");
        }
    }
    text
}

fn headline(suite: &Suite) -> String {
    let cases = plural(suite.cases.len(), "case");
    format!("{}: {cases} in {}, seed {}", suite.name, plural_matrices(suite.matrices.len()), suite.seed)
}

fn plural_matrices(count: usize) -> String {
    if count == 1 { "1 matrix".to_owned() } else { format!("{count} matrices") }
}

/// What a run of a suite would do: every planned case with the work of a call and the memory that it takes.
pub fn plan(suite: &Suite, estimates: &[Estimate], width: u16) -> String {
    let is_uniform = estimates.windows(2).all(|pair| manner(&pair[0]) == manner(&pair[1]));
    let mut text = headline(suite);
    if let (true, Some(first)) = (is_uniform, estimates.first()) {
        let _ = write!(text, ", {}", manner(first));
    }
    let mut header = vec!["case", "pairs", "FLOP", "traffic", "memory"];
    if !is_uniform {
        header.push("how");
    }
    let columns = header.len();
    let mut table = table(&header, width);
    for estimate in estimates {
        let (work, memory) = (&estimate.work, estimate.tensor_bytes + estimate.workspace_bytes.unwrap_or(0));
        let mut row = vec![
            Cell::new(estimate.case_id.replace('/', &format!("/{BREAK}"))).set_delimiter(BREAK),
            figure(if work.pairs_all_heads > 0 {
                units::count(work.pairs_all_heads)
            } else {
                units::NOTHING.to_owned()
            }),
            figure(units::count(work.flops)),
            figure(units::bytes(work.bytes())),
            figure(match estimate.workspace_bytes {
                Some(_) => units::bytes(memory),
                None => format!("> {}", units::bytes(memory)),
            }),
        ];
        if !is_uniform {
            row.push(Cell::new(manner(estimate)));
        }
        table.add_row(row);
    }
    keep_whole(&mut table, 1..columns);
    text.push_str("\n\n");
    text.push_str(&table.trim_fmt().replace(BREAK, ""));
    for estimate in estimates {
        if let Some(reason) = &estimate.unsupported {
            let _ = write!(text, "\n\nwill be unsupported: {}\n", estimate.case_id);
            text.push_str(&paragraph(reason, 2, width));
        }
    }
    text.push_str("\n\n");
    text.push_str(&paragraph(LEGEND, 0, width));
    text
}

/// A zero-width space: where a case id may be broken without losing its slash. It is gone from what is printed.
const BREAK: char = '\u{200b}';

const LEGEND: &str = "pairs: visible (query, key) pairs of all heads; FLOP and traffic: what the mathematics of one call \
                      needs; memory: inputs, outputs and the kernel's workspace, > where the workspace is known only to a run.";

/// How a case is measured, in short.
fn manner(estimate: &Estimate) -> String {
    let mut text = format!("{}, {}", estimate.mode.name(), plural(estimate.rounds as usize, "round"));
    if estimate.threads > 0 {
        let _ = write!(text, ", {}", plural(estimate.threads, "thread"));
    }
    text
}

/// Kernels: what each is, and what it computes by mechanism and phase.
pub fn kernels(kernels: &[KernelListing], width: u16) -> String {
    let mut what = table(&["kernel", "dtypes", "what it is"], width);
    let mut header = vec!["kernel", "mechanism"];
    header.extend(Phase::ALL.map(Phase::name));
    header.push("KV");
    let mut computes = table(&header, width);
    for kernel in kernels {
        let name = format!("{}/{}", kernel.provider, kernel.name);
        let narrower = kernel.multiplies_in.map(|dtype| format!(" as {dtype}")).unwrap_or_default();
        what.add_row([&name, &format!("{}{narrower}", dtypes(&kernel.supports)), kernel.summary]);
        let mut mechanisms: Vec<&str> = kernel.supports.iter().map(|support| support.mechanism).collect();
        mechanisms.dedup();
        for mechanism in mechanisms {
            let supports: Vec<&Support> =
                kernel.supports.iter().filter(|support| support.mechanism == mechanism).collect();
            let mut row = vec![name.clone(), mechanism.to_owned()];
            row.extend(Phase::ALL.map(|phase| patterns(&supports, phase)));
            row.push(keys_in(&supports).to_owned());
            computes.add_row(row);
        }
    }
    keep_whole(&mut what, [0, 1]);
    keep_whole(&mut computes, [0, 1]);
    // No word is broken: a phase's name and each pattern's name fit in their column.
    for (index, name) in header.iter().enumerate().skip(2) {
        if let Some(column) = computes.column_mut(index) {
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(name.len() as u16 + 2)));
        }
    }
    format!("{}\n\n{}", what.trim_fmt(), computes.trim_fmt())
}

/// The patterns of a phase.
fn patterns(supports: &[&Support], phase: Phase) -> String {
    let names: Vec<&str> =
        supports.iter().filter(|support| support.phase == phase).map(|support| support.pattern).collect();
    let legal = attn_kernels::problem::legal::LEGAL
        .iter()
        .filter(|row| supports.first().is_some_and(|first| first.mechanism == row.mechanism))
        .filter(|row| row.phases.contains(&phase))
        .flat_map(|row| row.patterns.iter());
    match names.len() {
        0 => units::NOTHING.to_owned(),
        count if count > 1 && count == legal.count() => "all".to_owned(),
        _ => names.join(", "),
    }
}

/// The dtypes that it computes in.
fn dtypes(supports: &[Support]) -> String {
    let has = |dtype: &&str| supports.iter().any(|support| support.dtypes.contains(dtype));
    Dtype::ALL.map(Dtype::name).into_iter().filter(has).collect::<Vec<_>>().join(", ")
}

/// Where the keys and values are that it reads.
fn keys_in(supports: &[&Support]) -> &'static str {
    let contiguous = supports.iter().any(|support| support.contiguous);
    let paged = supports.iter().any(|support| support.paged);
    match (contiguous, paged) {
        (true, true) => "rows or pages",
        (false, true) => "pages",
        _ => "rows",
    }
}
