//! `--dtype`: a suite's problems, all in one dtype.

use anyhow::Context;
use attn_kernels::problem::Dtype;

use crate::suite::Suite;

/// Reads the option.
pub(in crate::commands) fn parse(name: &str) -> Result<Dtype, String> {
    let known = || Dtype::ALL.map(Dtype::name).join(", ");
    Dtype::ALL
        .into_iter()
        .find(|dtype| dtype.name() == name)
        .ok_or_else(|| format!("there is no dtype `{name}`; there are {}", known()))
}

/// Makes this the dtype of queries and keys of every case, but for keys that a case stores in e4m3. Cases that are alike then
/// are one.
pub(super) fn compute_in(suite: &mut Suite, dtype: Dtype) -> anyhow::Result<()> {
    for planned in &mut suite.cases {
        let problem = &mut planned.case.problem;
        problem.dtype = dtype;
        if problem.dtype_kv != Dtype::E4m3 {
            problem.dtype_kv = dtype;
        }
        problem.validate().with_context(|| {
            format!("computing case `{}` in {}: leave it out with --exclude", planned.case.id(), dtype.name())
        })?;
    }
    Ok(())
}
