//! A suite as its file says it: every key known and every value of the right type, nothing combined yet.

use std::collections::HashMap;
use std::ops::Range;

use attn_kernels::kernel::Kernel;
use toml::de::{DeTable, DeValue};

use super::axes::{self, AXES, AxisValue};
use super::error::{Fault, choices, quote, suggest};
use super::filter::CaseGlob;
use super::value::{MAX_VALUES, Node, boolean, entries, integer, mismatch, one_or_many, sentence, string};
use super::{MeasureSettings, settings};
use crate::case::check_name;

/// Seed of a suite that names none.
const DEFAULT_SEED: u64 = 42;

/// The keys of a suite.
const SUITE_KEYS: [&str; 4] = ["description", "seed", "measure", "matrix"];

/// The keys of a matrix besides its axes.
const MATRIX_KEYS: [&str; 9] =
    ["name", "reason", "providers", "kernels", "shapes", "include", "exclude", "skip_invalid", "measure"];

/// A suite before its matrices are expanded.
pub(super) struct RawSuite {
    pub(super) description: String,
    pub(super) seed: u64,
    pub(super) matrices: Vec<RawMatrix>,
}

/// A matrix before it is expanded.
pub(super) struct RawMatrix {
    /// Where it begins.
    pub(super) span: Range<usize>,
    pub(super) name: String,
    pub(super) reason: String,
    pub(super) providers: Vec<String>,
    pub(super) kernels: KernelChoice,
    /// What is combined: each dimension is a list of alternatives, each alternative one or more values that go together.
    pub(super) dimensions: Vec<Vec<Vec<AxisValue>>>,
    pub(super) include: Vec<(CaseGlob, Range<usize>)>,
    pub(super) exclude: Vec<(CaseGlob, Range<usize>)>,
    pub(super) skip_invalid: bool,
    pub(super) settings: MeasureSettings,
}

/// Which kernels compute a matrix's problems.
pub(super) enum KernelChoice {
    /// Every built-in kernel that supports the problem.
    All,
    /// These, whether or not they support it.
    Named(Vec<String>),
}

/// Reads the keys of a suite file.
pub(super) fn read(table: &DeTable<'_>, built_in: &[&dyn Kernel]) -> Result<RawSuite, Fault> {
    let mut description = None;
    let mut seed = DEFAULT_SEED;
    let mut around = MeasureSettings::default();
    let mut matrices: &[Node<'_>] = &[];
    for (key, span, node) in entries(table) {
        match key {
            "description" => description = Some(sentence(key, node)?),
            "seed" => seed = integer(key, 0..=i64::MAX as u64, node)?,
            "measure" => around = settings::read(node, &around)?,
            "matrix" => match node.get_ref() {
                DeValue::Array(list) => matrices = list,
                _ => return Err(mismatch(key, "a list of tables; write `[[matrix]]`", node)),
            },
            unknown => return Err(Fault::at(span, unknown_key("suite", unknown, SUITE_KEYS))),
        }
    }
    let missing = |message: &str| Fault { span: None, matrix: None, message: message.to_owned() };
    let description =
        description.ok_or_else(|| missing("`description` is missing; say in a sentence what the suite answers"))?;
    if matrices.is_empty() {
        return Err(missing("the suite is empty; add at least one `[[matrix]]`"));
    }
    let mut names: HashMap<String, Range<usize>> = HashMap::new();
    let mut read = Vec::new();
    for node in matrices {
        let matrix = read_matrix(node, &around, built_in)?;
        if names.insert(matrix.name.clone(), matrix.span.clone()).is_some() {
            let message = "another matrix above has this name; names are unique, so that records can refer to them";
            return Err(Fault::at(matrix.span, message).in_matrix(&matrix.name));
        }
        read.push(matrix);
    }
    Ok(RawSuite { description, seed, matrices: read })
}

fn unknown_key<'a>(of: &str, key: &str, valid: impl IntoIterator<Item = &'a str> + Clone) -> String {
    format!("unknown {of} key {}{}", quote(key), suggest(key, valid))
}

fn read_matrix(node: &Node<'_>, around: &MeasureSettings, built_in: &[&dyn Kernel]) -> Result<RawMatrix, Fault> {
    let DeValue::Table(table) = node.get_ref() else {
        return Err(mismatch("matrix", "a list of tables; write `[[matrix]]`", node));
    };
    let name = match table.get("name") {
        None => return Err(Fault::at(node.span(), "a matrix has no `name`; give it one that is unique in the file")),
        Some(name) => name,
    };
    let text = string("name", "a text", name)?;
    check_name(text).map_err(|reason| Fault::at(name.span(), format!("matrix {reason}")))?;
    read_matrix_keys(node, table, text, around, built_in).map_err(|fault| fault.in_matrix(text))
}

fn read_matrix_keys(
    node: &Node<'_>,
    table: &DeTable<'_>,
    name: &str,
    around: &MeasureSettings,
    built_in: &[&dyn Kernel],
) -> Result<RawMatrix, Fault> {
    let mut reason = None;
    let mut providers = vec!["cpu".to_owned()];
    let mut kernels = None;
    let mut shapes = None;
    let (mut include, mut exclude) = (Vec::new(), Vec::new());
    let mut skip_invalid = false;
    let mut settings = around.clone();
    let mut axes: Vec<(usize, Vec<AxisValue>)> = Vec::new();
    // Where each axis is given, to find those that say the same thing.
    let mut given: HashMap<&'static str, Range<usize>> = HashMap::new();
    for (key, span, node) in entries(table) {
        match key {
            "name" => {}
            "reason" => reason = Some(sentence(key, node)?),
            "providers" => providers = read_names(key, "provider", node)?,
            "kernels" => kernels = Some(node),
            "shapes" => shapes = Some(node),
            "include" => include = read_globs(key, node)?,
            "exclude" => exclude = read_globs(key, node)?,
            "skip_invalid" => skip_invalid = boolean(key, node)?,
            "measure" => settings = settings::read(node, around)?,
            axis => {
                let Some((index, axis)) = axes::find(axis) else {
                    return Err(Fault::at(
                        span,
                        unknown_key("matrix", axis, MATRIX_KEYS.into_iter().chain(axes::names())),
                    ));
                };
                given.insert(axis.name, span);
                axes.push((index, axis.values(node)?));
            }
        }
    }
    let reason = reason
        .ok_or_else(|| Fault::at(node.span(), "`reason` is missing; say in a sentence why these cases are measured"))?;
    let kernels = match kernels {
        Some(node) => read_kernels(node, &providers, built_in)?,
        None => {
            let message = "`kernels` is missing; name some, or take every built-in kernel that supports the problem \
                           with `kernels = \"all\"`";
            return Err(Fault::at(node.span(), message));
        }
    };
    let mut dimensions = Vec::new();
    check_exclusive(&given)?;
    if let Some(node) = shapes {
        dimensions.push(read_shapes(node, &mut given)?);
    }
    if given.contains_key("mode") && matrix_measures_mode(table) {
        return Err(Fault::at(node.span(), "`mode` is given as an axis and in `[matrix.measure]`; keep one of them"));
    }
    axes.sort_by_key(|&(index, _)| index);
    dimensions.extend(axes.into_iter().map(|(_, values)| values.into_iter().map(|value| vec![value]).collect()));
    let name = name.to_owned();
    let span = node.span();
    Ok(RawMatrix { span, name, reason, providers, kernels, dimensions, include, exclude, skip_invalid, settings })
}

fn matrix_measures_mode(table: &DeTable<'_>) -> bool {
    matches!(table.get("measure").map(|node| node.get_ref()), Some(DeValue::Table(measure)) if measure.contains_key("mode"))
}

/// Two axes that decide the same thing cannot both be given.
fn check_exclusive(given: &HashMap<&'static str, Range<usize>>) -> Result<(), Fault> {
    for axis in AXES.iter().filter(|axis| given.contains_key(axis.name)) {
        if let Some(&other) = axis.excludes.iter().find(|&&other| given.contains_key(other)) {
            let message = format!("`{}` already decides `{other}`; remove one of them", axis.name);
            return Err(Fault::at(given[other].clone(), message));
        }
    }
    Ok(())
}

/// Tied axes: a list of tables, each of which sets several axes at once, one value each. Their keys join `given`.
fn read_shapes(node: &Node<'_>, given: &mut HashMap<&'static str, Range<usize>>) -> Result<Vec<Vec<AxisValue>>, Fault> {
    const EXPECTS: &str = "a list of tables that set axes together, such as `[{ batch = 32, seqlen = 512 }]`";
    let DeValue::Array(list) = node.get_ref() else { return Err(mismatch("shapes", EXPECTS, node)) };
    if list.is_empty() || list.len() > MAX_VALUES {
        return Err(Fault::at(node.span(), format!("`shapes` expects {EXPECTS}, 1 to {MAX_VALUES} of them")));
    }
    let mut alternatives = Vec::new();
    let mut in_shapes: HashMap<&'static str, Range<usize>> = HashMap::new();
    for node in list {
        let DeValue::Table(table) = node.get_ref() else { return Err(mismatch("shapes", EXPECTS, node)) };
        let mut values = Vec::new();
        let mut in_row = given.clone();
        for (key, span, node) in entries(table) {
            let Some((index, axis)) = axes::find(key) else {
                return Err(Fault::at(span, unknown_key("shape", key, axes::names())));
            };
            if given.contains_key(axis.name) {
                let message = format!("`{}` is given in `shapes` and beside it; keep one of them", axis.name);
                return Err(Fault::at(span, message));
            }
            let value = axis.values(node)?;
            let Ok([value]) = <[AxisValue; 1]>::try_from(value) else {
                let message =
                    format!("`{}` has several values inside `shapes`; each row sets one: {}", axis.name, axis.expects);
                return Err(Fault::at(node.span(), message));
            };
            in_row.insert(axis.name, span);
            values.push((index, value));
        }
        check_exclusive(&in_row)?;
        in_shapes.extend(in_row);
        values.sort_by_key(|&(index, _)| index);
        alternatives.push(values.into_iter().map(|(_, value)| value).collect());
    }
    given.extend(in_shapes);
    Ok(alternatives)
}

/// Names of providers or kernels.
fn read_names(key: &str, what: &str, node: &Node<'_>) -> Result<Vec<String>, Fault> {
    let expects = format!("the name of a {what}");
    let read = |node: &Node<'_>| {
        let name = string(key, &expects, node)?;
        check_name(name).map_err(|reason| Fault::at(node.span(), format!("{what} {reason}")))?;
        Ok(name.to_owned())
    };
    one_or_many(key, &expects, node)?.into_iter().map(read).collect()
}

fn read_kernels(node: &Node<'_>, providers: &[String], built_in: &[&dyn Kernel]) -> Result<KernelChoice, Fault> {
    let foreign = providers.iter().find(|provider| *provider != "cpu");
    if matches!(node.get_ref(), DeValue::String(text) if text == "all") {
        return match foreign {
            None => Ok(KernelChoice::All),
            Some(provider) => Err(Fault::at(
                node.span(),
                format!("`kernels = \"all\"` is for the built-in provider `cpu`; name the kernels of `{provider}`"),
            )),
        };
    }
    let names = read_names("kernels", "kernel", node)?;
    if foreign.is_none() {
        for name in &names {
            if !built_in.iter().any(|kernel| kernel.name() == name) {
                let valid = built_in.iter().map(|kernel| kernel.name());
                let message = format!("there is no built-in kernel {}{}", quote(name), suggest(name, valid));
                return Err(Fault::at(node.span(), message));
            }
        }
    }
    Ok(KernelChoice::Named(names))
}

fn read_globs(key: &str, node: &Node<'_>) -> Result<Vec<(CaseGlob, Range<usize>)>, Fault> {
    let read = |node: &Node<'_>| {
        let text = string(key, "a glob on case ids such as `*/decode/*`", node)?;
        let glob = CaseGlob::parse(text).map_err(|error| Fault::at(node.span(), format!("`{key}`: {error}")))?;
        Ok((glob, node.span()))
    };
    one_or_many(key, "a glob on case ids such as `*/decode/*`", node)?.into_iter().map(read).collect()
}

/// The built-in kernels' names, for errors.
pub(super) fn kernel_names(built_in: &[&dyn Kernel]) -> String {
    choices(built_in.iter().map(|kernel| kernel.name()))
}
