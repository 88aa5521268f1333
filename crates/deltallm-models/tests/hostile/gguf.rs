//! Every way to break a GGUF file that we could think of, by name.

use deltallm_models::gguf::{Array, GgufError, GgufFile, Value};
use deltallm_models::quant::TensorType;

use crate::common::gguf_writer::{GgufWriter, put_string};
use crate::common::tiny;
use crate::measured;

fn refused(bytes: &[u8]) -> GgufError {
    measured(bytes.len(), || GgufFile::parse(bytes)).expect_err("a file that must be refused")
}

fn parse(writer: &GgufWriter) -> Result<GgufFile, GgufError> {
    GgufFile::parse(&writer.finish())
}

fn array_payload(type_id: u32, count: u64) -> Vec<u8> {
    [type_id.to_le_bytes().as_slice(), &count.to_le_bytes()].concat()
}

#[test]
fn empty_file() {
    assert!(matches!(refused(b""), GgufError::Truncated { what: "magic", remaining: 0, .. }));
}

#[test]
fn bad_magic() {
    let mut bytes = tiny::llama().finish();
    bytes[0] = b'X';
    assert_eq!(refused(&bytes), GgufError::BadMagic { got: *b"XGUF" });
}

#[test]
fn unsupported_versions() {
    for version in [0, 1, 4, u32::MAX] {
        let mut writer = tiny::llama();
        writer.version = version;
        assert_eq!(refused(&writer.finish()), GgufError::UnsupportedVersion { got: version });
    }
}

#[test]
fn big_endian() {
    let mut writer = tiny::llama();
    writer.version = 3u32.swap_bytes();
    assert_eq!(refused(&writer.finish()), GgufError::BigEndian { version: 3 });
}

#[test]
fn counts_of_two_to_the_63() {
    let mut writer = tiny::llama();
    writer.claimed_tensors = Some(1 << 63);
    assert!(
        matches!(refused(&writer.finish()), GgufError::Count { what: "tensors", got, .. } if got == 1 << 63)
    );
    let mut writer = tiny::llama();
    writer.claimed_entries = Some(1 << 63);
    assert!(
        matches!(refused(&writer.finish()), GgufError::Count { what: "metadata entries", got, .. } if got == 1 << 63)
    );
}

#[test]
fn more_tensors_than_described() {
    let mut writer = GgufWriter::new().f32_tensor("a", &[16], &[0.0; 16]);
    writer.claimed_tensors = Some(2);
    // What follows the only description is data, whose zeros describe a tensor without dimensions.
    assert!(matches!(refused(&writer.finish()), GgufError::Rank { got: 0, .. }));
}

#[test]
fn key_longer_than_the_file() {
    let bytes =
        GgufWriter::new().raw_bytes(&[&(1u64 << 40).to_le_bytes()[..], &[b'k'; 20]].concat()).finish();
    assert!(
        matches!(refused(&bytes), GgufError::Truncated { what: "metadata key", expected, .. } if expected == 1 << 40)
    );
}

#[test]
fn string_longer_than_the_file() {
    let bytes = GgufWriter::new().raw_entry("k", 8, &u64::MAX.to_le_bytes()).finish();
    assert!(matches!(
        refused(&bytes),
        GgufError::Truncated { what: "metadata value", expected: u64::MAX, .. }
    ));
}

#[test]
fn tensor_name_longer_than_the_file() {
    let mut writer = GgufWriter::new().raw_bytes(&[0xff; 64]);
    writer.claimed_entries = Some(0);
    writer.claimed_tensors = Some(1);
    assert!(matches!(
        refused(&writer.finish()),
        GgufError::Truncated { what: "tensor name", expected: u64::MAX, .. }
    ));
}

#[test]
fn arrays_longer_than_the_file() {
    // The last one's size in bytes would overflow to 0.
    for count in [100, 1 << 40, 1 << 61] {
        for type_id in [0, 4, 8, 9, 10, 12] {
            let bytes = GgufWriter::new().raw_entry("k", 9, &array_payload(type_id, count)).finish();
            assert!(
                matches!(refused(&bytes), GgufError::Count { what: "array elements", got, .. } if got == count)
            );
        }
    }
}

#[test]
fn string_in_an_array_longer_than_the_file() {
    let payload = [array_payload(8, 1), (1u64 << 50).to_le_bytes().to_vec()].concat();
    let bytes = GgufWriter::new().raw_entry("k", 9, &payload).finish();
    assert!(matches!(refused(&bytes), GgufError::Truncated { what: "string in an array", .. }));
}

#[test]
fn unknown_value_type() {
    let bytes = GgufWriter::new().raw_entry("k", 13, &[0; 8]).finish();
    assert_eq!(refused(&bytes), GgufError::ValueType { key: "k".into(), got: 13 });
}

#[test]
fn unknown_array_element_type() {
    let bytes = GgufWriter::new().raw_entry("k", 9, &array_payload(77, 1)).finish();
    assert_eq!(refused(&bytes), GgufError::ValueType { key: "k".into(), got: 77 });
}

#[test]
fn wrong_array_element_type() {
    let file = parse(&GgufWriter::new().set("tokens", Value::Array(Array::U32(vec![1, 2])))).unwrap();
    let expected = GgufError::WrongType {
        key: "tokens".into(),
        expected: "array of string",
        got: "array of u32".into(),
    };
    assert_eq!(file.metadata().strings("tokens"), Err(expected));
}

#[test]
fn arrays_nested_too_deep() {
    let nested = |depth| (1..depth).fold(Array::U8(vec![7]), |inner, _| Array::Array(vec![inner]));
    assert!(parse(&GgufWriter::new().set("k", Value::Array(nested(4)))).is_ok());
    for depth in [5, 1000] {
        let writer = GgufWriter::new().set("k", Value::Array(nested(depth)));
        assert_eq!(refused(&writer.finish()), GgufError::Nesting { key: "k".into(), most: 4 });
    }
}

#[test]
fn booleans_other_than_zero_and_one() {
    let bytes = GgufWriter::new().raw_entry("k", 7, &[2]).finish();
    assert_eq!(refused(&bytes), GgufError::Bool { key: "k".into(), got: 2 });
    let bytes = GgufWriter::new().raw_entry("k", 9, &[array_payload(7, 2), vec![1, 255]].concat()).finish();
    assert_eq!(refused(&bytes), GgufError::Bool { key: "k".into(), got: 255 });
}

#[test]
fn duplicate_key() {
    let writer = GgufWriter::new().raw_entry("k", 0, &[1]).raw_entry("k", 0, &[2]);
    assert_eq!(refused(&writer.finish()), GgufError::DuplicateKey { key: "k".into() });
}

#[test]
fn key_is_not_utf8() {
    let mut entry = Vec::new();
    put_string(&mut entry, b"ab\xff");
    entry.extend([0; 8]);
    let bytes = GgufWriter::new().raw_bytes(&entry).finish();
    assert!(matches!(refused(&bytes), GgufError::NotUtf8 { what: "metadata key", valid: 2, .. }));
}

#[test]
fn string_is_not_utf8() {
    let mut payload = Vec::new();
    put_string(&mut payload, b"\xc0\x80");
    let bytes = GgufWriter::new().raw_entry("k", 8, &payload).finish();
    assert!(matches!(refused(&bytes), GgufError::NotUtf8 { what: "metadata value", valid: 0, .. }));
}

#[test]
fn tensor_name_is_not_utf8() {
    let writer = GgufWriter::new().raw_tensor(b"\xed\xa0\x80", &[1], 0, 0).raw_data(&[0; 32]);
    assert!(matches!(refused(&writer.finish()), GgufError::NotUtf8 { what: "tensor name", .. }));
}

#[test]
fn alignment_that_is_no_power_of_two_or_absurd() {
    for got in [0, 3, 33, 1 << 17, 1 << 30, u32::MAX] {
        let writer = tiny::llama().set("general.alignment", Value::U32(got));
        assert_eq!(refused(&writer.finish()), GgufError::Alignment { most: 1 << 16, got: got.into() });
    }
}

#[test]
fn alignment_of_the_wrong_type() {
    let writer = tiny::llama().set("general.alignment", Value::String("32".into()));
    assert!(
        matches!(refused(&writer.finish()), GgufError::WrongType { key, .. } if key == "general.alignment")
    );
}

#[test]
fn tensors_with_no_or_five_dimensions() {
    for (dims, got) in [(vec![], 0), (vec![1; 5], 5)] {
        let writer = GgufWriter::new().raw_tensor(b"t", &dims, 0, 0).raw_data(&[0; 32]);
        assert_eq!(refused(&writer.finish()), GgufError::Rank { tensor: "t".into(), got });
    }
}

#[test]
fn zero_dimension() {
    let writer = GgufWriter::new().raw_tensor(b"t", &[4, 0], 0, 0).raw_data(&[0; 32]);
    assert_eq!(refused(&writer.finish()), GgufError::ZeroDimension { tensor: "t".into(), dims: vec![4, 0] });
}

#[test]
fn overflowing_shapes() {
    // The first product wraps to 0, the second has too many bytes only.
    for dims in [vec![1 << 32, 1 << 32], vec![1 << 31, 1 << 32], vec![u64::MAX, u64::MAX, 2]] {
        let writer = GgufWriter::new().raw_tensor(b"t", &dims, 0, 0).raw_data(&[0; 32]);
        assert_eq!(refused(&writer.finish()), GgufError::ShapeOverflow { tensor: "t".into(), dims });
    }
}

#[test]
fn unknown_tensor_type() {
    // 10 is Q2_K, which is not supported; 4 was removed from the format.
    for got in [4, 10, 36, u32::MAX] {
        let writer = GgufWriter::new().raw_tensor(b"t", &[256], got, 0).raw_data(&[0; 1024]);
        let error = refused(&writer.finish());
        assert_eq!(error, GgufError::TensorType { tensor: "t".into(), got });
        assert!(error.to_string().contains("`t`") && error.to_string().contains(&format!("type {got}")));
    }
}

#[test]
fn rows_that_are_no_whole_blocks() {
    // 64 elements in all, but 16 a row.
    let writer = GgufWriter::new().raw_tensor(b"t", &[16, 4], TensorType::Q8_0.id(), 0).raw_data(&[0; 128]);
    assert_eq!(refused(&writer.finish()), GgufError::PartialBlock { tensor: "t".into(), block: 32, got: 16 });
}

#[test]
fn tensors_past_the_end() {
    for (dims, offset) in [(8, 32), (9, 0), (1, 1 << 40), (1, u64::MAX - 31)] {
        let writer = GgufWriter::new().raw_tensor(b"t", &[dims], 0, offset).raw_data(&[0; 32]);
        let error = GgufError::TensorPastEnd { tensor: "t".into(), offset, bytes: 4 * dims, available: 32 };
        assert_eq!(refused(&writer.finish()), error);
    }
}

#[test]
fn tensor_without_a_data_section() {
    let mut bytes = GgufWriter::new().raw_tensor(b"t", &[1], 0, 0).finish();
    bytes.truncate(bytes.len() - 1);
    assert!(matches!(refused(&bytes), GgufError::TensorPastEnd { available: 0, .. }));
}

#[test]
fn misaligned_tensor() {
    let writer = GgufWriter::new().raw_tensor(b"t", &[1], 0, 4).raw_data(&[0; 32]);
    let error = GgufError::Misaligned { tensor: "t".into(), alignment: 32, got: 4 };
    assert_eq!(refused(&writer.finish()), error);
}

#[test]
fn overlapping_tensors() {
    for (first, second) in [(0, 32), (0, 0)] {
        let writer = GgufWriter::new()
            .raw_tensor(b"later", &[8], 0, second)
            .raw_tensor(b"earlier", &[16], 0, first)
            .raw_data(&[0; 128]);
        assert!(matches!(refused(&writer.finish()), GgufError::Overlap { .. }));
    }
}

#[test]
fn duplicate_tensor() {
    let writer =
        GgufWriter::new().raw_tensor(b"t", &[8], 0, 0).raw_tensor(b"t", &[8], 0, 32).raw_data(&[0; 64]);
    assert_eq!(refused(&writer.finish()), GgufError::DuplicateTensor { tensor: "t".into() });
}

#[test]
fn truncated_anywhere() {
    // The last tensor fills the file to its end, so every shorter file lacks something.
    let bytes = tiny::llama().finish();
    for length in 0..bytes.len() {
        refused(&bytes[..length]);
    }
    assert!(GgufFile::parse(&bytes).is_ok());
}

#[test]
fn getters_name_expected_and_got() {
    let file =
        parse(&GgufWriter::new().set("k", Value::I32(-1)).set("s", Value::String("x".into()))).unwrap();
    let metadata = file.metadata();
    assert_eq!(
        metadata.integer("k").unwrap_err().to_string(),
        "metadata `k`: expected non-negative integer, got i32"
    );
    assert!(metadata.float("k").is_err() && metadata.bool("k").is_err() && metadata.string("k").is_err());
    assert!(
        metadata.floats("k").is_err() && metadata.integers("k").is_err() && metadata.integer("s").is_err()
    );
    assert_eq!(metadata.string("absent"), Ok(None));
}
