//! Copies of contiguous bytes and products in e4m3 in the shim, against plain loops and the layouts that the PTX ISA documents.

use attn_kernels::e4m3::e4m3;

use super::shim::{Memory, compile, cuda_folder, launch};

const ROWS: usize = 64;
const COLUMNS: usize = 128;

/// A small integer that depends on a place; e4m3 holds all up to 16.
fn number(seed: usize, outer: usize, inner: usize) -> f32 {
    (((seed * 31 + outer * 7919 + inner * 104_729) % 17) as i32 - 8) as f32
}

/// Where byte `inner` of row `outer` lies in a tile of panels of 128-byte rows, or of 64-byte ones where 128 does not divide a row:
/// 16-byte chunk c of row r is at c xor r mod 8, or at c xor r / 2 mod 4.
fn documented(rows: usize, width: usize, outer: usize, inner: usize) -> usize {
    let line = if width.is_multiple_of(128) { 128 } else { 64 };
    let chunk = inner % line / 16;
    let place = if line == 128 { chunk ^ (outer % 8) } else { chunk ^ (outer / 2 % 4) };
    inner / line * rows * line + outer * line + place * 16 + inner % 16
}

/// Runs a kernel of `bytes.cu` on A of (row, inner) and B of (column, inner); A is row by row where it comes through registers.
fn run(
    entry: &str,
    inner: usize,
    a: &dyn Fn(usize, usize) -> f32,
    b: &dyn Fn(usize, usize) -> f32,
) -> Result<Vec<f32>, String> {
    let slot = compile(&cuda_folder().join("shim/tests/bytes.cu"), &[]);
    let compiled = slot.get().expect("compiled");
    let is_in_registers = !(entry.starts_with("rows") || entry.starts_with("panels"));
    let image = |rows: usize, is_plain: bool, element: &dyn Fn(usize, usize) -> f32| {
        let mut words = vec![0u128; rows * inner / 16];
        for (outer, inner_index) in (0..rows).flat_map(|outer| (0..inner).map(move |i| (outer, i))) {
            let at = if is_plain { outer * inner + inner_index } else { documented(rows, inner, outer, inner_index) };
            let bits = e4m3::from_f32(element(outer, inner_index)).to_bits();
            words[at / 16] |= u128::from(bits) << (8 * (at % 16));
        }
        words
    };
    let mut operands = [image(ROWS, is_in_registers, a), image(COLUMNS, false, b)];
    let mut output = vec![f32::NAN; ROWS * COLUMNS];
    let mut memory = Memory::default();
    let mut arguments = Vec::new();
    for (name, words) in ["a", "b"].iter().zip(&mut operands) {
        let base = memory.add(name, words.as_mut_ptr().cast(), 16 * words.len(), false);
        arguments.push(("P".to_string(), vec![base as u64]));
    }
    let to = memory.add("output", output.as_mut_ptr().cast(), 4 * output.len(), true);
    arguments.push(("P".to_string(), vec![to as u64]));
    launch(compiled, entry, [1, 1, 1], [160, 1, 1], 64 << 10, &arguments, &memory)?;
    Ok(output)
}

fn integers(entry: &str, inner: usize) -> Result<Vec<f32>, String> {
    run(entry, inner, &|row, k| number(1, row, k), &|column, k| number(2, column, k))
}

#[test]
fn operands_lie_as_documented() {
    for (entry, inner) in [
        ("rows_of_64", 64),
        ("rows_of_128", 128),
        ("panels_of_64", 192),
        ("panels_of_128", 256),
        ("registers_by_64", 64),
        ("registers_by_128", 128),
    ] {
        let dot = |row, column| (0..inner).map(|k| number(1, row, k) * number(2, column, k)).sum::<f32>();
        let expected: Vec<f32> = (0..ROWS * COLUMNS).map(|index| 2.0 * dot(index / COLUMNS, index % COLUMNS)).collect();
        assert_eq!(integers(entry, inner).expect(entry), expected, "{entry}");
    }
}

/// 2^16 from the first 32 of the inner dimension, and 5 from those behind: of their sum, 14 bits stay.
#[test]
fn sums_keep_14_bits() {
    let sums = run(
        "rows_of_64",
        64,
        &|_, k| {
            if k == 0 {
                256.0
            } else if k >= 59 {
                1.0
            } else {
                0.0
            }
        },
        &|column, k| {
            if k == 0 && column % 2 == 0 {
                256.0
            } else if k > 0 {
                1.0
            } else {
                0.0
            }
        },
    );
    let sums = sums.expect("sound");
    assert_eq!(sums[..4], [131_072.0, 10.0, 131_072.0, 10.0]);
}

#[test]
fn faults_are_found() {
    for (fault, expected) in [
        ("without_copy_wait", "is in flight"),
        ("announces_too_few", "copies bring 16 bytes more to the mbarrier"),
        ("odd_bytes", "each is a multiple of 16"),
        ("without_fence", "without a fence between"),
        ("early_release", "shared address"),
        ("others_operand", "lanes of a warp bring different operands"),
        ("unknown_layout", "whose layout the shim does not know"),
    ] {
        let report = integers(fault, 64).map(|_| "nothing").expect_err(fault);
        assert!(report.contains(expected), "{fault}: {report}");
    }
    // What a product has not finished is not a number.
    assert!(integers("without_wait", 64).expect("nothing to see").iter().all(|x| x.is_nan()));
}

/// The shim's conversion against the one of this crate: every number, the middle of each two and its neighbours, and what saturates.
#[test]
fn numbers_are_packed_as_specified() {
    let mut numbers = vec![449.0, 464.0, 1e30, f32::INFINITY, f32::NAN, 1e-30, 0.0, f32::from_bits(1)];
    for bits in 0..126u8 {
        let [low, high] = [bits, bits + 1].map(|bits| e4m3::from_bits(bits).to_f32());
        let middle = (low + high) / 2.0;
        numbers.extend([low, middle, middle.next_down(), middle.next_up()]);
    }
    let mut numbers: Vec<f32> = numbers.iter().flat_map(|&x| [x, -x]).collect();
    numbers.resize(numbers.len().next_multiple_of(4), 1.0);
    let slot = compile(&cuda_folder().join("shim/tests/bytes.cu"), &[]);
    let mut words = vec![0u32; numbers.len() / 4];
    let mut memory = Memory::default();
    let from = memory.add("numbers", numbers.as_mut_ptr().cast(), 4 * numbers.len(), false);
    let to = memory.add("words", words.as_mut_ptr().cast(), 4 * words.len(), true);
    let pointer = |address: *mut u8| ("P".to_string(), vec![address as u64]);
    let arguments = [pointer(from), pointer(to), ("I".to_string(), vec![numbers.len() as u64])];
    launch(slot.get().expect("compiled"), "packed", [1, 1, 1], [32, 1, 1], 0, &arguments, &memory).expect("sound");
    for (index, &x) in numbers.iter().enumerate() {
        let bits = (words[index / 4] >> (8 * (index % 4))) as u8;
        assert_eq!(bits, e4m3::from_f32(x).to_bits(), "{x:e}");
    }
}
