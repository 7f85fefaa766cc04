//! Attention in f64 from its definition, one score after the other.

/// A function of (sequence, head, query, key).
pub(crate) type Mask = Box<dyn Fn(usize, usize, usize, usize) -> f64>;

/// Numbers and rules of an evaluation; tensors are (batch, heads, length, dim).
pub(crate) struct Dense {
    pub(crate) batch: usize,
    pub(crate) heads: (usize, usize),
    pub(crate) lengths: (usize, usize),
    pub(crate) dims: (usize, usize),
    pub(crate) q: Vec<f64>,
    pub(crate) k: Vec<f64>,
    pub(crate) v: Vec<f64>,
    pub(crate) scale: f64,
    pub(crate) softcap: Option<f64>,
    pub(crate) causal: bool,
    pub(crate) window: (Option<usize>, Option<usize>),
    /// Position of query 0 of each sequence.
    pub(crate) offsets: Vec<i64>,
    /// Keys of each sequence that count.
    pub(crate) valid: Vec<usize>,
    /// What is added to the score of (sequence, head, query, key); -inf hides it.
    pub(crate) mask: Mask,
}

impl Dense {
    /// Output (batch, heads, length, dim) and log-sum-exp (batch, heads, length).
    pub(crate) fn evaluate(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for b in 0..self.batch {
            for h in 0..self.heads.0 {
                for i in 0..self.lengths.0 {
                    self.row(b, h, i, &mut out, &mut lse);
                }
            }
        }
        (out, lse)
    }

    fn row(&self, b: usize, h: usize, i: usize, out: &mut Vec<f64>, lse: &mut Vec<f64>) {
        let (dim_qk, dim_v) = self.dims;
        let q = &self.q[((b * self.heads.0 + h) * self.lengths.0 + i) * dim_qk..][..dim_qk];
        let first = (b * self.heads.1 + h / (self.heads.0 / self.heads.1)) * self.lengths.1;
        let p = i as i64 + self.offsets[b];
        let scores: Vec<f64> = (0..self.lengths.1)
            .map(|j| {
                let behind = p - j as i64;
                let is_hidden = j >= self.valid[b]
                    || (self.causal && behind < 0)
                    || self.window.0.is_some_and(|left| behind > left as i64)
                    || self.window.1.is_some_and(|right| -behind > right as i64);
                if is_hidden {
                    return f64::NEG_INFINITY;
                }
                let k = &self.k[(first + j) * dim_qk..][..dim_qk];
                let score = self.scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                self.softcap.map_or(score, |cap| cap * (score / cap).tanh()) + (self.mask)(b, h, i, j)
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            out.extend(std::iter::repeat_n(0.0, dim_v));
            lse.push(max);
            return;
        }
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..dim_v {
            let weighted: f64 = weights.iter().enumerate().map(|(j, w)| w * self.v[(first + j) * dim_v + d]).sum();
            out.push(weighted / sum);
        }
        lse.push(max + sum.ln());
    }
}
