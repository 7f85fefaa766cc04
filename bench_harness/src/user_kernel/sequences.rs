//! Where the sequences of a batch lie, as tables that a user's kernel may take: without them a ragged batch cannot be told.

use attn_kernels::problem::{AttentionProblem, Layout};

/// One 32-bit signed integer a sequence, or one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SequenceTable {
    /// Queries of each sequence.
    LengthsQ,
    /// Keys of each sequence.
    LengthsKv,
    /// The row of each sequence's first query among the rows of Q, and how many rows there are.
    StartsQ,
    /// The row of each sequence's first key among the rows of K, and how many rows there are.
    StartsKv,
}

impl SequenceTable {
    const ALL: [SequenceTable; 4] =
        [SequenceTable::LengthsQ, SequenceTable::LengthsKv, SequenceTable::StartsQ, SequenceTable::StartsKv];

    /// Its name in manifests.
    pub(super) fn name(self) -> &'static str {
        match self {
            SequenceTable::LengthsQ => "lengths_q",
            SequenceTable::LengthsKv => "lengths_kv",
            SequenceTable::StartsQ => "starts_q",
            SequenceTable::StartsKv => "starts_kv",
        }
    }

    /// Its contents. A row is a token: with layout `thd` sequences follow one another, otherwise each takes as many rows as
    /// the longest.
    pub(super) fn bytes(self, problem: &AttentionProblem) -> Result<Vec<u8>, String> {
        let is_q = matches!(self, SequenceTable::LengthsQ | SequenceTable::StartsQ);
        let lengths = if is_q { problem.lengths_q() } else { problem.lengths_kv() };
        let values = match self {
            SequenceTable::LengthsQ | SequenceTable::LengthsKv => lengths,
            SequenceTable::StartsQ | SequenceTable::StartsKv => {
                let longest = lengths.iter().copied().max().unwrap_or(0);
                let rows = |length: usize| if problem.layout == Layout::Thd { length } else { longest };
                let mut next = 0;
                let mut starts = vec![0];
                starts.extend(lengths.into_iter().map(|length| {
                    next += rows(length);
                    next
                }));
                starts
            }
        };
        let mut bytes = Vec::with_capacity(4 * values.len());
        for value in values {
            let value = i32::try_from(value).map_err(|_| format!("{value} rows do not fit 32 bits"))?;
            bytes.extend(value.to_le_bytes());
        }
        Ok(bytes)
    }
}

/// The tables that these arguments of launches name, once each.
pub(super) fn tables_of<'a>(arguments: impl Iterator<Item = &'a String>) -> Vec<SequenceTable> {
    let named: Vec<&str> = arguments.map(String::as_str).collect();
    SequenceTable::ALL.into_iter().filter(|table| named.contains(&table.name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(table: SequenceTable, id: &str) -> Vec<i32> {
        let problem = AttentionProblem::parse_id(id).expect("an id");
        let bytes = table.bytes(&problem).expect("few rows");
        bytes.chunks(4).map(|value| i32::from_le_bytes(value.try_into().expect("four bytes"))).collect()
    }

    #[test]
    fn sequences_are_where_the_layout_puts_them() {
        let packed = "softmax/prefill/full/bf16/b3/h2:1/q@list:2,5,1/k@list:4,0,3/d64/layout=thd";
        assert_eq!(table(SequenceTable::LengthsQ, packed), [2, 5, 1]);
        assert_eq!(table(SequenceTable::LengthsKv, packed), [4, 0, 3]);
        assert_eq!(table(SequenceTable::StartsQ, packed), [0, 2, 7, 8]);
        assert_eq!(table(SequenceTable::StartsKv, packed), [0, 4, 4, 7]);
        let padded = packed.replace("/layout=thd", "");
        assert_eq!(table(SequenceTable::StartsQ, &padded), [0, 5, 10, 15]);
        assert_eq!(table(SequenceTable::StartsKv, &padded), [0, 4, 8, 12]);
        let alike = "softmax/prefill/full/bf16/b2/h2:1/q3/k4/d64";
        assert_eq!(table(SequenceTable::StartsQ, alike), [0, 3, 6]);
        assert_eq!(table(SequenceTable::LengthsKv, alike), [4, 4]);
    }
}
