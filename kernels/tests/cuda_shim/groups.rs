//! Products of warpgroups and hand-overs of registers in the shim, against plain loops.

use super::shim::{Memory, compile, cuda_folder, launch};

const ROWS: usize = 64;
const COLUMNS: usize = 128;
const INNER: usize = 64;

/// f16 of a small integer that depends on a place.
fn number(seed: usize, outer: usize, inner: usize) -> i32 {
    ((seed * 31 + outer * 7919 + inner * 104_729) % 17) as i32 - 8
}

fn half(integer: i32) -> u16 {
    half::f16::from_f32(integer as f32).to_bits()
}

/// Runs a kernel of `groups.cu` on A of (row, inner) and B of (column, inner), in the orders that it reads.
fn run(entry: &str, a_is_transposed: bool, b_is_transposed: bool) -> Result<Vec<f32>, String> {
    let slot = compile(&cuda_folder().join("shim/tests/groups.cu"), &[]);
    let compiled = slot.get().expect("compiled");
    let operand = |seed, outer: usize, is_transposed: bool| {
        let mut words = vec![0u128; outer * INNER / 8];
        for index in 0..outer * INNER {
            let (o, i) = if is_transposed { (index % outer, index / outer) } else { (index / INNER, index % INNER) };
            words[index / 8] |= u128::from(half(number(seed, o, i))) << (16 * (index % 8));
        }
        words
    };
    let mut operands = [operand(1, ROWS, a_is_transposed), operand(2, COLUMNS, b_is_transposed)];
    let mut output = vec![f32::NAN; ROWS * COLUMNS];
    let mut memory = Memory::default();
    let mut arguments = Vec::new();
    for (name, words) in ["a", "b"].iter().zip(&mut operands) {
        let base = memory.add(name, words.as_mut_ptr().cast(), 16 * words.len(), false);
        arguments.push(("P".to_string(), vec![base as u64]));
    }
    let to = memory.add("output", output.as_mut_ptr().cast(), 4 * output.len(), true);
    arguments.push(("P".to_string(), vec![to as u64]));
    let threads =
        if entry.starts_with("hand") || entry.starts_with("take") || entry.starts_with("give") { 384 } else { 256 };
    launch(compiled, entry, [1, 1, 1], [threads, 1, 1], 48 << 10, &arguments, &memory)?;
    Ok(output)
}

fn expected(times: i32) -> Vec<f32> {
    let dot = |row, column| (0..INNER).map(|i| number(1, row, i) * number(2, column, i)).sum::<i32>();
    (0..ROWS * COLUMNS).map(|index| (times * dot(index / COLUMNS, index % COLUMNS)) as f32).collect()
}

#[test]
fn operands_lie_either_way() {
    for (entry, a, b) in [
        ("rows_by_rows", false, false),
        ("rows_by_columns", false, true),
        ("columns_by_rows", true, false),
        ("columns_by_columns", true, true),
    ] {
        assert_eq!(run(entry, a, b).expect(entry), expected(2), "{entry}");
    }
    assert_eq!(run("from_registers", false, false).expect("sound"), expected(1));
}

#[test]
fn faults_of_products_are_found() {
    for (fault, expected) in [
        ("without_fence", "without a fence between"),
        ("without_proxy_fence", "no fence shows to it"),
        ("early_release", "shared address"),
        ("others_operand", "lanes of a warp bring different operands"),
        ("abandoned", "a product that nobody waits for"),
    ] {
        let report = run(fault, false, false).map(|_| "nothing").expect_err(fault);
        assert!(report.contains(expected), "{fault}: {report}");
    }
    // What a product has not finished is not a number.
    assert!(run("without_wait", false, false).expect("nothing to see").iter().all(|x| x.is_nan()));
}

#[test]
fn registers_are_handed_over() {
    assert!(run("hand_over", false, false).is_ok());
    for (fault, expected) in [
        ("take_too_many", "wants registers that nobody gave back"),
        ("give_back_upwards", "giving back registers down to 232, of which there are 168"),
    ] {
        let report = run(fault, false, false).map(|_| "nothing").expect_err(fault);
        assert!(report.contains(expected), "{fault}: {report}");
    }
}
