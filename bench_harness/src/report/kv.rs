//! The report of `attnbench kv`: exact byte counts as JSON, rounded ones as tables and bars.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::{Style, printable, units};
use crate::kv::capacity::{largest_batch, largest_context};
use crate::kv::pages::{PagedBatch, paged, reserved_bytes};
use crate::kv::variants::variants;
use crate::kv::{Budget, CacheShape, Context, Element, KvError};

/// Page sizes of the common servers.
const PAGE_SIZES: [u64; 5] = [16, 32, 64, 128, 256];
/// Longest bar, in characters.
const BAR_WIDTH: usize = 40;
/// Doublings before and after the context that the growth table shows.
const DOUBLINGS: u32 = 3;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// A model's name, or what was given instead.
    pub name: String,
    /// Where its figures are from, for a preset.
    pub source: Option<String>,
    /// Its layers.
    pub shape: CacheShape,
    /// How elements of the cache are stored.
    pub element: Element,
    /// Tokens a sequence.
    pub context: u64,
    /// Sequences.
    pub batch: u64,
    /// The memory, where one is given.
    pub budget: Option<Budget>,
    /// Lengths of a server's sequences, where they are given.
    pub lengths: Option<Vec<u64>>,
}

/// Every answer, in exact bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// A model's name, or what was given instead.
    pub name: String,
    /// Where its figures are from, for a preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Layers.
    pub layers: u32,
    /// How elements of the cache are stored.
    pub dtype: Element,
    /// Tokens a sequence.
    pub context: u64,
    /// Sequences.
    pub batch: u64,
    /// Bytes a token, over all layers, while every window has room.
    pub token_bytes: u64,
    /// Bytes a sequence.
    pub sequence_bytes: u64,
    /// Bytes a batch.
    pub batch_bytes: u64,
    /// Layers of one kind, and what they keep.
    pub groups: Vec<Group>,
    /// The same layers with another attention.
    pub variants: Vec<VariantAnswer>,
    /// How cache and scores grow.
    pub growth: Vec<Growth>,
    /// What fits, where a memory was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// What pages waste, where lengths were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paging: Option<Paging>,
}

/// Layers of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Their attention in words.
    pub attention: String,
    /// How many.
    pub layers: u32,
    /// Bytes that a token takes in one of them.
    pub token_bytes_of_a_layer: u64,
    /// Tokens that are kept at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Bytes that do not grow, in one of them.
    pub state_bytes_of_a_layer: u64,
    /// Bytes of a sequence, in all of them.
    pub sequence_bytes: u64,
}

/// Another attention in the same layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VariantAnswer {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Element,
    /// Bytes a token.
    pub token_bytes: u64,
    /// Bytes a sequence.
    pub sequence_bytes: u64,
    /// Bytes a batch.
    pub batch_bytes: u64,
    /// Its bytes a sequence over those of the shape as given.
    pub ratio: f64,
    /// Sequences that fit, where a memory was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_batch: Option<u64>,
}

/// One context.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Growth {
    /// Tokens.
    pub context: u64,
    /// Bytes of the cache of a sequence.
    pub sequence_bytes: u64,
    /// Bytes of the scores of one head that a materialised form writes.
    pub score_bytes_of_a_head: u64,
    /// The same of one layer and the batch.
    pub score_bytes_of_a_layer: u64,
}

/// What fits in a memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capacity {
    /// The memory.
    #[serde(flatten)]
    pub budget: Budget,
    /// Bytes for caches.
    pub available_bytes: u64,
    /// Tokens that each sequence of the batch may have.
    pub largest_context: Context,
    /// Tokens that one sequence alone may have.
    pub largest_context_alone: Context,
    /// Sequences of the context.
    pub largest_batch: u64,
}

/// Sequences of given lengths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paging {
    /// How many.
    pub sequences: usize,
    /// Their tokens together.
    pub tokens: u64,
    /// Bytes where every sequence reserves the longest one's.
    pub reserved_bytes: u64,
    /// By page size.
    pub pages: Vec<PagedBatch>,
}

/// Counts everything.
pub fn answer(question: &Question) -> Result<Answer, KvError> {
    let Question { shape, element, context, batch, .. } = question;
    let (element, context, batch) = (*element, *context, *batch);
    let available = question.budget.map(|budget| Ok((budget, budget.available_bytes()?))).transpose()?;
    let sequence_bytes = shape.sequence_bytes(element, context)?;
    let group = |group: &crate::suite::presets::LayerGroup| {
        let own = CacheShape::new(vec![*group])?;
        let kept = own.kept().next().expect("one group");
        let count = u64::from(kept.layers);
        Ok(Group {
            attention: attention(group),
            layers: kept.layers,
            token_bytes_of_a_layer: own.token_bytes(element)? / count,
            max_tokens: kept.max_tokens,
            state_bytes_of_a_layer: kept.state_bytes,
            sequence_bytes: own.sequence_bytes(element, context)?,
        })
    };
    Ok(Answer {
        name: question.name.clone(),
        source: question.source.clone(),
        layers: shape.layers(),
        dtype: element,
        context,
        batch,
        token_bytes: shape.token_bytes(element)?,
        sequence_bytes,
        batch_bytes: shape.batch_bytes(element, context, batch)?,
        groups: shape.groups().iter().map(group).collect::<Result<_, KvError>>()?,
        variants: variant_answers(question, available.map(|(_, bytes)| bytes), sequence_bytes)?,
        growth: growth(question)?,
        capacity: available.map(|(budget, available_bytes)| Capacity {
            budget,
            available_bytes,
            largest_context: largest_context(shape, element, batch, available_bytes),
            largest_context_alone: largest_context(shape, element, 1, available_bytes),
            largest_batch: largest_batch(shape, element, context, available_bytes),
        }),
        paging: question.lengths.as_deref().map(|lengths| paging(shape, element, lengths)).transpose()?,
    })
}

fn variant_answers(
    question: &Question,
    available_bytes: Option<u64>,
    sequence_bytes: u64,
) -> Result<Vec<VariantAnswer>, KvError> {
    let mut found = Vec::new();
    let mut add = |name: String, shape: &CacheShape, element: Element| -> Result<(), KvError> {
        let own = shape.sequence_bytes(element, question.context)?;
        found.push(VariantAnswer {
            name,
            dtype: element,
            token_bytes: shape.token_bytes(element)?,
            sequence_bytes: own,
            batch_bytes: shape.batch_bytes(element, question.context, question.batch)?,
            ratio: own as f64 / sequence_bytes.max(1) as f64,
            largest_batch: available_bytes.map(|bytes| largest_batch(shape, element, question.context, bytes)),
        });
        Ok(())
    };
    for variant in variants(&question.shape) {
        add(variant.name, &variant.shape, question.element)?;
    }
    for element in [Element::F16, Element::FP8].into_iter().filter(|other| other.bits() != question.element.bits()) {
        add("as given".to_owned(), &question.shape, element)?;
    }
    Ok(found)
}

fn growth(question: &Question) -> Result<Vec<Growth>, KvError> {
    let halved = (1..=DOUBLINGS).rev().map(|times| question.context >> times);
    let doubled = (0..=DOUBLINGS).map_while(|times| question.context.checked_mul(1 << times));
    let mut contexts: Vec<u64> = halved.chain(doubled).filter(|&context| context > 0).collect();
    contexts.dedup();
    let one = |context: u64| {
        Ok(Growth {
            context,
            sequence_bytes: question.shape.sequence_bytes(question.element, context)?,
            score_bytes_of_a_head: CacheShape::score_bytes_of_a_head(question.element, context)?,
            score_bytes_of_a_layer: question.shape.score_bytes_of_a_layer(question.element, context, question.batch)?,
        })
    };
    let asked = one(question.context)?;
    // What lies beyond 64 bits is left out of the table; what was asked for is not.
    let rows =
        contexts.into_iter().map(|context| if context == asked.context { Ok(asked.clone()) } else { one(context) });
    Ok(rows.take_while(Result::is_ok).flatten().collect())
}

fn paging(shape: &CacheShape, element: Element, lengths: &[u64]) -> Result<Paging, KvError> {
    Ok(Paging {
        sequences: lengths.len(),
        tokens: lengths.iter().sum(),
        reserved_bytes: reserved_bytes(shape, element, lengths)?,
        pages: PAGE_SIZES.iter().map(|&size| paged(shape, element, lengths, size)).collect::<Result<_, _>>()?,
    })
}

/// A layer's attention as its case id writes it: `softmax/window:4096 32:8 d128`.
fn attention(group: &crate::suite::presets::LayerGroup) -> String {
    use attn_kernels::problem::{AttentionProblem, Dtype, Phase};
    let mut problem = AttentionProblem::softmax(Phase::Decode, Dtype::F16, 1, (1, 1), (1, 1), 1);
    group.apply(&mut problem);
    let id = problem.id();
    let mut parts = id.split('/');
    let (mechanism, pattern) = (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default());
    let dims = if group.head_dim_qk == group.head_dim_v {
        format!("d{}", group.head_dim_v)
    } else {
        format!("d{}:{}", group.head_dim_qk, group.head_dim_v)
    };
    format!("{mechanism}/{pattern} {}:{} {dims}", problem.heads_q, problem.heads_kv)
}

/// The answer for people.
pub fn text(answer: &Answer, style: Style) -> String {
    let mut out = Vec::new();
    out.push(style.bold(&printable(&format!(
        "{}: {} layers, {} sequence{} of {} tokens, cache in {}",
        answer.name,
        answer.layers,
        answer.batch,
        if answer.batch == 1 { "" } else { "s" },
        answer.context,
        answer.dtype
    ))));
    let exact = |bytes: u64| format!("{} ({bytes} B)", units::bytes(bytes));
    out.push(format!("  a token     {}", exact(answer.token_bytes)));
    out.push(format!("  a sequence  {}", exact(answer.sequence_bytes)));
    out.push(format!("  the batch   {}", exact(answer.batch_bytes)));
    if let Some(capacity) = &answer.capacity {
        out.extend(capacity_lines(answer, capacity));
    }
    out.push(String::new());
    let groups = answer.groups.iter().map(|group| {
        let most = group.max_tokens.map_or("all".to_owned(), |most| most.to_string());
        let token = units::bytes(group.token_bytes_of_a_layer);
        vec![printable(&group.attention), group.layers.to_string(), token, most, units::bytes(group.sequence_bytes)]
    });
    out.push(table(&["attention", "layers", "a token a layer", "tokens kept", "a sequence"], groups, style));
    out.push(style.bold("\nThe same layers with another attention"));
    out.push(variant_table(answer, style));
    out.push(style.bold("\nGrowth: the cache, and the scores that a materialised prefill writes"));
    let growth = answer.growth.iter().map(|row| {
        let bytes = [row.sequence_bytes, row.score_bytes_of_a_head, row.score_bytes_of_a_layer].map(units::bytes);
        [vec![row.context.to_string()], bytes.to_vec()].concat()
    });
    out.push(table(&["tokens", "cache a sequence", "scores a head", "scores a layer"], growth, style));
    if let Some(paging) = &answer.paging {
        out.push(paging_text(paging, style));
    }
    out.join("\n")
}

fn capacity_lines(answer: &Answer, capacity: &Capacity) -> Vec<String> {
    let Budget { memory_bytes, weight_bytes, reserve_bytes } = capacity.budget;
    let [memory, weights, reserve, rest] =
        [memory_bytes, weight_bytes, reserve_bytes, capacity.available_bytes].map(units::bytes);
    vec![
        format!("  memory      {memory} - weights {weights} - reserve {reserve} = {rest}"),
        format!(
            "  fits        {} of {} tokens each; or {} tokens in each of {}, {} in one alone",
            capacity.largest_batch,
            answer.context,
            capacity.largest_context,
            answer.batch,
            capacity.largest_context_alone
        ),
    ]
}

/// A row a variant, with a bar of its bytes a sequence.
fn variant_table(answer: &Answer, style: Style) -> String {
    let largest = answer.variants.iter().map(|variant| variant.sequence_bytes).max().unwrap_or(0).max(1);
    let has_budget = answer.capacity.is_some();
    let width = BAR_WIDTH.min(style.width.saturating_sub(64)).max(8);
    let rows = answer.variants.iter().map(|variant| {
        let mut row = vec![
            format!("{}, {}", variant.name, variant.dtype),
            units::bytes(variant.token_bytes),
            units::bytes(variant.sequence_bytes),
            format!("{}x", units::three_digits(variant.ratio)),
        ];
        if has_budget {
            row.push(variant.largest_batch.map_or(units::NOTHING.to_owned(), |fits| match fits {
                u64::MAX => "any".to_owned(),
                fits => fits.to_string(),
            }));
        }
        row.push(bar(variant.sequence_bytes as f64 / largest as f64, width));
        row
    });
    let mut heads = vec!["design", "a token", "a sequence", "of given"];
    if has_budget {
        heads.push("fit");
    }
    heads.push("");
    table(&heads, rows, style)
}

/// A share of `width` characters, at least a sliver of what is not nothing.
fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = ((share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize).max(usize::from(share > 0.0));
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

fn paging_text(paging: &Paging, style: Style) -> String {
    let title = format!(
        "\nPages: {} sequences, {} tokens; contiguous caches that reserve the longest take {}",
        paging.sequences,
        paging.tokens,
        units::bytes(paging.reserved_bytes)
    );
    let rows = paging.pages.iter().map(|pages| {
        vec![
            pages.page_size.to_string(),
            pages.pages.to_string(),
            units::bytes(pages.taken_bytes),
            units::bytes(pages.wasted_bytes()),
            units::percent(pages.wasted_share()),
        ]
    });
    [style.bold(&title), table(&["page", "pages", "taken", "wasted", "share"], rows, style)].join("\n")
}

/// A plain table: the first and the last column to the left where the last has no head, numbers to the right.
fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>, style: Style) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(style.width).unwrap_or(u16::MAX));
    let aligned = |cells: Vec<String>| {
        let cell = |(column, text): (usize, String)| {
            let is_left = column == 0 || heads[column].is_empty();
            Cell::new(text).set_alignment(if is_left { CellAlignment::Left } else { CellAlignment::Right })
        };
        cells.into_iter().enumerate().map(cell).collect::<Vec<_>>()
    };
    table.set_header(aligned(heads.iter().map(|&head| head.to_owned()).collect()));
    rows.for_each(|row| {
        table.add_row(aligned(row));
    });
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::presets::find;

    fn question() -> Question {
        let model = find("gemma-2-9b").expect("a preset");
        Question {
            name: model.name.to_owned(),
            source: Some(model.source.to_owned()),
            shape: CacheShape::of_model(model).expect("a decoder"),
            element: Element::BF16,
            context: 8192,
            batch: 4,
            budget: Some(Budget {
                memory_bytes: 80_000_000_000,
                weight_bytes: 2 * model.parameters,
                reserve_bytes: 8_000_000_000,
            }),
            lengths: Some(vec![1, 15, 16, 17, 1000, 8192]),
        }
    }

    #[test]
    fn everything_at_80_columns() {
        let answer = answer(&question()).expect("counts fit");
        insta::assert_snapshot!(text(&answer, Style { width: 80, colour: false }));
    }

    #[test]
    fn bars() {
        assert_eq!(bar(0.0, 8), "");
        assert_eq!(bar(1e-9, 8), "▏");
        assert_eq!(bar(0.5, 8), "████");
        assert_eq!(bar(7.0, 8), "████████");
    }

    #[test]
    fn what_does_not_fit_in_64_bits_is_said() {
        let mut question = question();
        question.context = u64::MAX;
        let error = answer(&question).expect_err("too long").to_string();
        assert!(error.starts_with("counting the bytes of a sequence: more than"), "{error}");
    }
}
