//! The axes of a case: the parts of its id by name, for whatever filters, sorts, groups or labels by them.

/// The axes in the order of case ids, each with the letter that its part of the id begins with.
pub const AXES: [(&str, &str); 12] = [
    ("provider", ""),
    ("kernel", ""),
    ("mechanism", ""),
    ("phase", ""),
    ("pattern", ""),
    ("dtype", ""),
    ("batch", "b"),
    ("heads", "h"),
    ("seqlen_q", "q"),
    ("seqlen_kv", "k"),
    ("head_dim", "d"),
    ("options", ""),
];

/// The value of each of [`AXES`]. Every text has one for each: what an id lacks is empty, options are one value.
pub fn axes(case_id: &str) -> [&str; AXES.len()] {
    let mut values = [""; AXES.len()];
    for ((value, part), (_, letter)) in values.iter_mut().zip(case_id.splitn(AXES.len(), '/')).zip(AXES) {
        *value = part.strip_prefix(letter).unwrap_or(part);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_id_has_its_axis() {
        let id =
            "cpu/flash/linear:feature_map=relu/prefill/full+causal/f16/b4/h8:2/q1/k@list:5,7/d192:128/bias=bool/x=1";
        let expected = ["cpu", "flash", "linear:feature_map=relu", "prefill", "full+causal", "f16", "4", "8:2", "1"];
        assert_eq!(axes(id)[..9], expected);
        assert_eq!(axes(id)[9..], ["@list:5,7", "192:128", "bias=bool/x=1"]);
        assert_eq!(axes("rubbish")[..3], ["rubbish", "", ""]);
        assert_eq!(axes("")[0], "");
    }
}
