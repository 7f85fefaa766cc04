//! Arithmetic on runs of rows and keys that the patterns share.

use std::ops::Range;

/// Number of elements; 0 where the end lies before the start.
pub(super) fn len(range: &Range<i64>) -> i64 {
    (range.end - range.start).max(0)
}

/// What two ranges share. An empty result may have its end before its start.
pub(super) fn intersect(a: &Range<i64>, b: &Range<i64>) -> Range<i64> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// Sorts ranges, drops empty ones, and joins those that overlap or touch.
pub(super) fn merge(ranges: &mut Vec<Range<i64>>) {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, kept| {
        let joins = next.start <= kept.end;
        if joins {
            kept.end = kept.end.max(next.end);
        }
        joins
    });
}

/// Sum over p in `rows` of floor((p + shift) / step), each term clamped to low..=high; low <= high.
pub(super) fn sum_of_floors(rows: &Range<i64>, shift: i64, step: i64, low: i64, high: i64) -> i64 {
    if rows.is_empty() {
        return 0;
    }
    // The terms rise with p: they are `low` up to `first`, themselves up to `last`, `high` from there on.
    let first = (low * step - shift).clamp(rows.start, rows.end);
    let last = (high * step - shift).clamp(first, rows.end);
    // With x = q * step + r, the terms from 0 up to x sum to this, and the difference holds below 0 too.
    let sum_below = |x: i64| {
        let (q, r) = (x.div_euclid(step), x.rem_euclid(step));
        step * (q * (q - 1) / 2) + q * r
    };
    low * (first - rows.start) + sum_below(last + shift) - sum_below(first + shift) + high * (rows.end - last)
}

/// Pairs with j <= p.
pub(super) fn count_causal(rows: &Range<i64>, keys: &Range<i64>) -> i64 {
    sum_of_floors(rows, 1 - keys.start, 1, 0, len(keys))
}

/// Keys p - t * step with -right <= t <= left: what window, dilated window and Longformer's window have in common.
/// A negative `right` leaves out the nearest keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Band {
    pub(super) left: i64,
    pub(super) right: i64,
    pub(super) step: i64,
}

impl super::Rule for Band {
    #[inline]
    fn sees(&self, p: i64, j: i64) -> bool {
        let distance = p - j;
        -self.right * self.step <= distance
            && distance <= self.left * self.step
            && (self.step == 1 || distance % self.step == 0)
    }

    fn count(&self, rows: Range<i64>, keys: Range<i64>) -> i64 {
        // The t with p - t * step >= x are those up to floor((p - x) / step).
        let up_to = |x: i64| sum_of_floors(&rows, -x, self.step, -self.right - 1, self.left);
        if keys.is_empty() { 0 } else { up_to(keys.start) - up_to(keys.end) }
    }

    fn seen(&self, rows: Range<i64>, len_kv: i64, out: &mut Vec<Range<i64>>) {
        if rows.is_empty() {
            return;
        }
        if len(&rows) >= self.step {
            // Neighbouring t leave no gap.
            out.push(rows.start - self.left * self.step..rows.end + self.right * self.step);
            return;
        }
        let first = (-self.right).max((rows.start - len_kv).div_euclid(self.step) + 1);
        let last = self.left.min((rows.end - 1).div_euclid(self.step));
        out.extend((first..=last).map(|t| rows.start - t * self.step..rows.end - t * self.step));
    }

    fn live(&self, rows: Range<i64>, len_kv: i64) -> i64 {
        if len_kv >= self.step {
            // t is seen by rows t * step .. t * step + len_kv, and neighbouring t leave no gap.
            len(&intersect(&rows, &(-self.right * self.step..len_kv + self.left * self.step)))
        } else {
            // No row sees two keys.
            self.count(rows, 0..len_kv)
        }
    }
}
