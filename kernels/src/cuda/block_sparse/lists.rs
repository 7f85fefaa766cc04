//! The keys that a tile of queries sees, as runs and masks.

use std::collections::HashMap;
use std::ops::Range;

use super::rows::RowSet;
use crate::pattern::Visibility;

/// `Run` of `block_sparse.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first key, or where the list of keys begins.
    pub(super) key: usize,
    /// The distance of keys; 0 for a list.
    pub(super) step: usize,
    /// Keys.
    pub(super) count: usize,
    /// Which mask, or none.
    pub(super) mask: Option<usize>,
}

/// The runs of a tile of queries.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    pub(super) runs: Vec<Run>,
    /// Tiles of keys in them.
    pub(super) tiles: usize,
    /// Pairs that are visible.
    pub(super) visible: u64,
}

/// What lists refer to: keys one by one, and masks of `rows` x `keys` bits in words of 32.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) gathered: Vec<i32>,
    pub(super) masks: Vec<u32>,
    known_keys: HashMap<Vec<i32>, usize>,
    known_masks: HashMap<Vec<u32>, usize>,
}

/// How many queries of a head and how many keys a tile has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) rows: usize,
    pub(super) keys: usize,
}

/// Numbers `start .. end`, of which all queries see all or some see some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    start: usize,
    end: usize,
    is_full: bool,
}

/// The numbers that at least one of these rows sees: those that all see first, each in ascending order.
fn segments(rows: &[Vec<Range<usize>>], lead: usize) -> Vec<Segment> {
    let mut events: Vec<(usize, i32)> = Vec::with_capacity(2 * rows.len());
    for range in rows.iter().flatten() {
        events.push((range.start, 1));
        events.push((range.end, -1));
    }
    // Numbers before and after the end of the lead are at other distances.
    events.push((lead, 0));
    events.sort_unstable();
    let (mut found, mut seen_by, mut start) = (Vec::<Segment>::new(), 0, 0);
    for (at, change) in events {
        if at > start && seen_by > 0 {
            let is_full = seen_by as usize == rows.len();
            match found.last_mut() {
                Some(last) if last.end == start && last.is_full == is_full && start != lead => last.end = at,
                _ => found.push(Segment { start, end: at, is_full }),
            }
        }
        seen_by += change;
        start = at;
    }
    // Stable: ascending within each kind.
    found.sort_by_key(|segment| !segment.is_full);
    found
}

/// How many tiles of keys a tile of rows visits.
pub(super) fn tiles(visibility: &Visibility, head: usize, set: &RowSet, rows: Range<usize>, keys: usize) -> usize {
    let seen: Vec<_> = rows.map(|row| set.ranges(visibility, head, row)).collect();
    segments(&seen, set.lead_and_step().0)
        .iter()
        .map(|segment| segment.end - segment.start)
        .sum::<usize>()
        .div_ceil(keys)
}

impl Pool {
    /// The runs of rows `rows` of a set, at most `cut.rows` of them.
    pub(super) fn list(
        &mut self,
        visibility: &Visibility,
        head: usize,
        set: &RowSet,
        rows: Range<usize>,
        cut: Cut,
    ) -> List {
        let seen: Vec<_> = rows.map(|row| set.ranges(visibility, head, row)).collect();
        let (lead, step) = set.lead_and_step();
        let segments = segments(&seen, lead);
        let mut list = List { visible: seen.iter().flatten().map(|range| range.len() as u64).sum(), ..List::default() };
        // What is left of the segments, and columns of the tile that is being filled.
        let mut columns: Vec<Segment> = Vec::new();
        let mut filled = 0;
        for mut segment in segments {
            while segment.start < segment.end {
                let whole = (segment.end - segment.start) / cut.keys * cut.keys;
                if filled == 0 && segment.is_full && whole > 0 {
                    let step = if segment.start < lead { 1 } else { step };
                    list.push(Run { key: set.key(segment.start), step, count: whole, mask: None }, cut.keys);
                    segment.start += whole;
                    continue;
                }
                let end = segment.end.min(segment.start + cut.keys - filled);
                columns.push(Segment { end, ..segment });
                filled += end - segment.start;
                segment.start = end;
                if filled == cut.keys {
                    let run = self.tile(set, &seen, &columns, cut);
                    list.push(run, cut.keys);
                    columns.clear();
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            let run = self.tile(set, &seen, &columns, cut);
            list.push(run, cut.keys);
        }
        list
    }

    /// One tile of these columns.
    fn tile(&mut self, set: &RowSet, seen: &[Vec<Range<usize>>], columns: &[Segment], cut: Cut) -> Run {
        let keys: Vec<i32> =
            columns.iter().flat_map(|part| part.start..part.end).map(|number| set.key(number) as i32).collect();
        let step = if keys.len() > 1 { keys[1] - keys[0] } else { 1 };
        let is_even = step > 0 && keys.windows(2).all(|pair| pair[1] - pair[0] == step);
        let count = keys.len();
        let is_full = count == cut.keys && columns.iter().all(|part| part.is_full);
        let mask = (!is_full).then(|| self.mask(seen, columns, cut));
        if is_even {
            return Run { key: keys[0] as usize, step: step as usize, count, mask };
        }
        let gathered = &mut self.gathered;
        let key = *self.known_keys.entry(keys).or_insert_with_key(|keys| {
            gathered.extend(keys);
            gathered.len() - keys.len()
        });
        Run { key, step: 0, count, mask }
    }

    /// The number of the mask of these columns. Rows that do not exist see everything, so that they make no new masks.
    fn mask(&mut self, seen: &[Vec<Range<usize>>], columns: &[Segment], cut: Cut) -> usize {
        let mut bits = vec![0u64; cut.rows];
        for (row, ranges) in seen.iter().enumerate() {
            for range in ranges {
                let mut column = 0;
                for part in columns {
                    let (start, end) = (range.start.max(part.start), range.end.min(part.end));
                    if start < end {
                        bits[row] |= (u64::MAX >> (64 - (end - start))) << (column + start - part.start);
                    }
                    column += part.end - part.start;
                }
            }
        }
        bits[seen.len()..].fill(u64::MAX);
        let words: Vec<u32> =
            bits.iter().flat_map(|&row| [row as u32, (row >> 32) as u32].into_iter().take(cut.keys / 32)).collect();
        let (masks, size) = (&mut self.masks, words.len());
        *self.known_masks.entry(words).or_insert_with_key(|words| {
            masks.extend(words);
            masks.len() / size - 1
        })
    }
}

impl List {
    fn push(&mut self, run: Run, keys: usize) {
        self.tiles += run.count.div_ceil(keys);
        if let Some(last) = self.runs.last_mut()
            && (last.mask, run.mask, last.step) == (None, None, run.step)
            && last.step > 0
            && last.key + last.count * last.step == run.key
        {
            last.count += run.count;
            return;
        }
        self.runs.push(run);
    }

    /// The runs in parts of at most `limit` tiles.
    pub(super) fn parts(&self, keys: usize, limit: usize) -> Vec<(Vec<Run>, usize)> {
        let mut parts = vec![(Vec::new(), 0)];
        for &whole in &self.runs {
            let mut rest = whole;
            while rest.count > 0 {
                let (runs, tiles) = parts.last_mut().expect("one at least");
                if *tiles == limit {
                    parts.push((Vec::new(), 0));
                    continue;
                }
                let count = rest.count.min((limit - *tiles) * keys);
                runs.push(Run { count, ..rest });
                *tiles += count.div_ceil(keys);
                rest.key += count * rest.step.max(1);
                rest.count -= count;
            }
        }
        parts
    }
}
