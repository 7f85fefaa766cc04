//! Tiles by tensor maps in the shim, against the layouts that the PTX ISA documents.

use attn_kernels::cuda::TensorMap;
use attn_kernels::tensor::TensorName;

use super::shim::{Memory, compile, cuda_folder, encode, launch};

const THREADS: u32 = 64;
const SHARED_BYTES: u32 = 64 << 10;

/// A dense matrix of 16-bit elements, in tiles of so many columns and rows.
fn matrix(columns: u32, rows: u32, tile: [u32; 2], swizzle_bytes: u32) -> TensorMap {
    TensorMap {
        tensor: TensorName::K,
        element_bytes: 2,
        sizes: vec![columns, rows],
        strides_bytes: vec![2 * u64::from(columns)],
        tile: tile.to_vec(),
        swizzle_bytes,
    }
}

/// Bytes of a tile.
fn bytes(map: &TensorMap) -> u32 {
    map.element_bytes * map.tile.iter().product::<u32>()
}

/// Element `index` of the tensor.
fn element(index: usize) -> u16 {
    (index * 7919 % 65_521 + 1) as u16
}

/// Runs a kernel of `tiles.cu` on a tensor of this many elements and gives back what it wrote, as 16-bit elements.
fn run(entry: &str, map: &TensorMap, elements: usize, integers: &[i32], bytes: u32) -> Result<Vec<u16>, String> {
    let slot = compile(&cuda_folder().join("shim/tests/tiles.cu"), &[]);
    let compiled = slot.get().expect("compiled");
    // 16 bytes aligned, as every allocation of a device is.
    let mut input: Vec<u128> = vec![0; elements.div_ceil(8)];
    let base: *mut u8 = input.as_mut_ptr().cast();
    for index in 0..elements {
        // SAFETY: the vector has room for as many elements of two bytes.
        unsafe { base.cast::<u16>().add(index).write(element(index)) };
    }
    let words = encode(compiled, base, map)?;
    let mut output = vec![0u32; (bytes as usize).div_ceil(4).max(THREADS as usize)];
    let mut memory = Memory::default();
    memory.add("tensor", base, 2 * elements, false);
    let to = memory.add("output", output.as_mut_ptr().cast(), 4 * output.len(), true);
    let mut arguments = vec![("S128".to_string(), words), ("P".to_string(), vec![to as u64])];
    arguments.extend(integers.iter().map(|&integer| ("I".to_string(), vec![u64::from(integer as u32)])));
    arguments.push(("U".to_string(), vec![bytes.into()]));
    launch(compiled, entry, [1, 1, 1], [THREADS, 1, 1], SHARED_BYTES, &arguments, &memory)?;
    Ok(output.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]).collect())
}

/// The byte of a tile at which the documentation's tables put chunk `chunk` of row `row`, rows of as many bytes as the swizzle is
/// wide: with 128 bytes, chunk c of row r is at place c xor (r mod 8); with 64 and 32, the pattern repeats every 512 and 256
/// bytes, in which two and four rows share a line of 128 bytes.
fn documented(width: usize, row: usize, chunk: usize) -> usize {
    let line = row * width / 128;
    let place = match width {
        32 => chunk ^ (line % 2),
        64 => chunk ^ (line % 4),
        _ => chunk ^ (line % 8),
    };
    row * width + place * 16
}

#[test]
fn swizzled_tiles_lie_as_documented() {
    let (columns, rows) = (200, 90);
    for swizzle in [32, 64, 128] {
        let width = swizzle / 2;
        for (x, y) in [(0, 0), (64, 8), (3, 5), (-5, -3), (190, 80), (500, 0), (0, -100)] {
            let map = matrix(columns, rows, [width, 24], swizzle);
            let tile = run("tile", &map, (columns * rows) as usize, &[x, y], bytes(&map)).expect("sound");
            for row in 0..24 {
                for column in 0..width as usize {
                    let (at_x, at_y) = (x as i64 + column as i64, y as i64 + row as i64);
                    let exists = (0..columns.into()).contains(&at_x) && (0..rows.into()).contains(&at_y);
                    let expected = if exists { element((at_y * i64::from(columns) + at_x) as usize) } else { 0 };
                    let at = documented(swizzle as usize, row, column / 8) / 2 + column % 8;
                    assert_eq!(tile[at], expected, "swizzle {swizzle}, box at {x}, {y}: row {row}, column {column}");
                }
            }
        }
    }
}

#[test]
fn four_dimensions_with_strides_that_skip() {
    // (batch, token, head, dim) of 2 x 9 x 3 x 32, seen as dim, token, head, batch.
    let map = TensorMap {
        sizes: vec![32, 9, 3, 2],
        strides_bytes: vec![3 * 64, 64, 9 * 3 * 64],
        tile: vec![32, 4, 2, 1],
        ..matrix(0, 0, [0; 2], 0)
    };
    for [x, y, z, w] in [[0, 0, 0, 0], [0, 7, 2, 1], [16, -1, 1, 0], [0, 0, 0, 2]] {
        let tile = run("tile_4d", &map, 2 * 9 * 3 * 32, &[x, y, z, w], bytes(&map)).expect("sound");
        for head in 0..2 {
            for token in 0..4 {
                for dim in 0..32 {
                    let [d, t, h] = [x + dim, y + token, z + head];
                    let exists = d < 32 && (0..9).contains(&t) && h < 3 && w < 2;
                    let expected = if exists { element((((w * 9 + t) * 3 + h) * 32 + d) as usize) } else { 0 };
                    let at = ((head * 4 + token) * 32 + dim) as usize;
                    assert_eq!(tile[at], expected, "{d} {t} {h} {w}");
                }
            }
        }
    }
}

#[test]
fn a_ring_of_stages_reads_every_tile_once() {
    for count in [1, 2, 3, 7] {
        let rows = 8 * count as u32;
        let map = matrix(64, rows, [64, 8], 128);
        let sums = run("ring", &map, 64 * rows as usize, &[count], bytes(&map)).expect("sound");
        let total = sums.chunks(2).take(32).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16);
        let total = total.fold(0u32, u32::wrapping_add);
        let words =
            (0..32 * rows as usize).map(|word| u32::from(element(2 * word)) | u32::from(element(2 * word + 1)) << 16);
        assert_eq!(total, words.fold(0u32, u32::wrapping_add), "{count} tiles");
    }
}

#[test]
fn faults_of_tiles_are_found() {
    let map = matrix(64, 64, [64, 8], 128);
    let bytes = bytes(&map);
    for (entry, announced, expected) in [
        ("without_wait", bytes, "is in flight"),
        ("wrong_parity", bytes, "read of shared address"),
        ("ring_without_empty", bytes, "races with a read by warp"),
        ("expects", bytes + 16, "wait for the mbarrier"),
        ("expects", bytes - 16, "copies bring 16 bytes more to the mbarrier at 0 than were announced"),
        ("without_fence", bytes, "whose initialisation no fence shows to the copy engine"),
        ("misaligned", bytes, "a tile at shared address 1088, which is not aligned to 128 bytes"),
    ] {
        let report = run(entry, &map, 64 * 64, &[0, 0], announced).expect_err(entry);
        assert!(report.contains(expected), "{entry}: {report}");
    }
    // The map reaches further than the tensor does.
    let report = run("tile", &map, 64 * 63, &[0, 56], bytes).expect_err("outside");
    assert!(report.contains("outside of tensor"), "{report}");
    let large = matrix(64, 512, [64, 256], 128);
    let report = run("tile", &TensorMap { tile: vec![64, 256], ..large }, 64 * 512, &[0, 0], 32 << 10).map(|_| ());
    assert_eq!(report, Ok(()), "256 rows are the most that a box has");
}

#[test]
fn maps_that_the_driver_refuses_are_refused() {
    let map = matrix(64, 64, [64, 8], 128);
    for (map, expected) in [
        (TensorMap { tile: vec![64, 257], ..map.clone() }, "1 to 256 elements"),
        (TensorMap { tile: vec![128, 8], sizes: vec![128, 64], ..map.clone() }, "wider than the swizzle"),
        (TensorMap { tile: vec![4, 8], ..map.clone() }, "multiple of 16 bytes"),
        (TensorMap { strides_bytes: vec![136], ..map.clone() }, "stride is a multiple of 16 bytes"),
        (TensorMap { sizes: vec![64, 0], ..map.clone() }, "no elements"),
        (TensorMap { element_bytes: 3, ..map.clone() }, "1, 2, 4 or 8 bytes"),
    ] {
        let refusal = run("tile", &map, 64 * 64, &[0, 0], 1024).expect_err(expected);
        assert!(refusal.contains(expected), "{refusal}");
    }
}
