//! The expected float sums are those of redis-server 7.0.15 on x86-64. `core/tests/number_differential.rs` compares
//! random ones.

use proptest::prelude::*;

use super::*;
use NumberError::{NotANumber, Overflow};

#[test]
fn only_canonical_integers_of_64_bits_are_read() {
    for (text, expected) in [
        ("0", Some(0)),
        ("7", Some(7)),
        ("-1", Some(-1)),
        ("1000", Some(1000)),
        ("9223372036854775807", Some(i64::MAX)),
        ("-9223372036854775808", Some(i64::MIN)),
        ("9223372036854775808", None),
        ("-9223372036854775809", None),
        ("99999999999999999999", None),
        ("100000000000000000000", None),
        ("", None),
        ("-", None),
        ("--1", None),
        ("+1", None),
        ("+", None),
        ("-0", None),
        ("00", None),
        ("01", None),
        ("-01", None),
        (" 1", None),
        ("1 ", None),
        ("1\n", None),
        ("1\0", None),
        ("1.0", None),
        ("1e3", None),
        ("0x10", None),
        ("1_000", None),
        ("١", None),
    ] {
        assert_eq!(parse_integer(text.as_bytes()), expected, "{text:?}");
    }
    assert_eq!(parse_integer(b"1\xff"), None);
}

#[test]
fn the_text_of_an_integer_dereferences_to_its_bytes() {
    for number in [0, 9, -10, i64::MAX, i64::MIN] {
        assert_eq!(*format_integer(number), *number.to_string().into_bytes());
    }
    assert_eq!(format!("{:?}", format_integer(-12)), "-12");
}

#[test]
fn an_absent_value_counts_as_zero() {
    assert_eq!(add_integer(None, -5), Ok(-5));
    assert_eq!(add_float(None, b"2.50"), Ok(b"2.5".to_vec()));
}

#[test]
fn integer_sums_beyond_64_bits_are_rejected() {
    assert_eq!(add_integer(Some(b"9223372036854775806"), 1), Ok(i64::MAX));
    assert_eq!(add_integer(Some(b"9223372036854775807"), 1), Err(Overflow));
    assert_eq!(add_integer(Some(b"-9223372036854775808"), -1), Err(Overflow));
    assert_eq!(add_integer(Some(b"-9223372036854775808"), i64::MAX), Ok(-1));
    assert_eq!(add_integer(Some(b"10.5"), 1), Err(NotANumber));
    assert_eq!(add_integer(Some(b""), 1), Err(NotANumber));
}

fn float_sum(value: Option<&str>, amount: &str) -> Result<String, NumberError> {
    let sum = add_float(value.map(str::as_bytes), amount.as_bytes())?;
    Ok(String::from_utf8(sum).unwrap())
}

#[test]
fn float_sums_are_those_of_redis() {
    for (value, amount, expected) in [
        (None, "0", "0"),
        (None, "3.5", "3.5"),
        (None, "5.0e3", "5000"),
        (Some("0"), "0", "0"),
        (Some("-0"), "-0", "0"),
        (Some("-0.0"), "0", "0"),
        (Some("3.0"), "0.1", "3.1"),
        (Some("10.50"), "0.1", "10.6"),
        (Some("5.0e3"), "2.0e2", "5200"),
        (Some("10.5"), "-5", "5.5"),
        (Some("0.1"), "0.2", "0.3"),
        (Some("0.3"), "-0.3", "0"),
        (Some("0.1"), "-0.3", "-0.2"),
        (Some("1"), "2", "3"),
        (Some("-1.5"), "1", "-0.5"),
        (Some("3"), "-3", "0"),
        (Some("1."), ".5", "1.5"),
        (Some("+1"), "+2", "3"),
        (Some("00012"), "0.50", "12.5"),
        (Some("1E3"), "1e+3", "2000"),
        (Some("1e-3"), "0", "0.001"),
        (Some("100"), "-1e-2", "99.99"),
        (Some("1.23456789"), "1.11111111", "2.345679"),
        (Some("3.14159265358979323846"), "0", "3.14159265358979324"),
        (Some("2.718281828459045235"), "1e-17", "2.71828182845904524"),
        (Some("1e-17"), "0", "0.00000000000000001"),
        (Some("1e-17"), "1e-17", "0.00000000000000002"),
        (Some("1e-18"), "0", "0"),
        (Some("-1e-18"), "0", "0"),
        (Some("4e-18"), "0", "0"),
        (Some("5e-18"), "0", "0"),
        (Some("6e-18"), "0", "0.00000000000000001"),
        (Some("-6e-18"), "0", "-0.00000000000000001"),
        (Some("0.000003814697265625"), "0", "0.00000381469726562"),
        (Some("0.000011444091796875"), "0", "0.00001144409179688"),
        (Some("-0.000003814697265625"), "0", "-0.00000381469726562"),
        (Some("0x1p-18"), "0x1p-18", "0.00000762939453125"),
        (Some("0.99999999999999999"), "0", "0.99999999999999999"),
        (Some("0.999999999999999999"), "0", "1"),
        (Some("0.9999999999999999999999"), "0", "1"),
        (Some("9.99999999999999999"), "0", "9.99999999999999999"),
        (Some("1e-4950"), "0", "0"),
        (Some("1e-4950"), "1", "1"),
        (Some("3.6451995318824746025e-4951"), "0", "0"),
        (Some("1.9e-4951"), "0", "0"),
        (Some("0e99999999999999999999"), "7", "7"),
        (Some("9223372036854775807"), "1", "9223372036854775808"),
        (Some("-9223372036854775808"), "-1", "-9223372036854775809"),
        (Some("18446744073709551615"), "0", "18446744073709551615"),
        (Some("18446744073709551616"), "1", "18446744073709551616"),
        (Some("18446744073709551617"), "0", "18446744073709551616"),
        (Some("18446744073709551618"), "0", "18446744073709551618"),
        (Some("18446744073709551619"), "0", "18446744073709551620"),
        (Some("36893488147419103234"), "0", "36893488147419103232"),
        (Some("36893488147419103238"), "0", "36893488147419103240"),
        (Some("18446744073709551614.5"), "0", "18446744073709551614"),
        (Some("9007199254740993"), "0.5", "9007199254740993.5"),
        (Some("123456789012345678901234567890"), "0", "123456789012345678899921813504"),
        (Some("1e20"), "0.5", "100000000000000000000"),
        (Some("1e20"), "-1e20", "0"),
        (Some("1e25"), "1", "10000000000000000000000000"),
        (Some("1e40"), "0", "9999999999999999999783686092270256259072"),
        (Some("1e40"), "-1", "9999999999999999999783686092270256259072"),
        (Some("0x10"), "0", "16"),
        (Some("0X1F"), "1", "32"),
        (Some("-0x1p4"), "0.5", "-15.5"),
        (Some("0x.8"), "0", "0.5"),
        (Some("0x1."), "0", "1"),
        (Some("0xaBcDeF"), "0", "11259375"),
        (Some("0x1.8p1"), "0x1P-1", "3.5"),
        (Some("0x1.fffffffffffffffep0"), "0", "2"),
        (Some("0x1.ffffffffffffffffp0"), "0", "2"),
        (Some("0x1p-16445"), "0", "0"),
        (Some("0x1.8p-16446"), "0", "0"),
        (Some("18446744073709551616"), "0x1p0", "18446744073709551616"),
        (Some("18446744073709551616"), "0x1.0000000000000002p0", "18446744073709551618"),
        (Some("18446744073709551616"), "-0x1p-1", "18446744073709551616"),
        (Some("18446744073709551616"), "-0x1.0000000000000002p-1", "18446744073709551615"),
        (Some("-18446744073709551616"), "-0x1.0000000000000002p0", "-18446744073709551618"),
        (Some("18446744073709551617.0000000000000000000000001"), "0", "18446744073709551618"),
        (Some("0x10000000000000001"), "0", "18446744073709551616"),
        (
            Some("0x10000000000000001000000000000000000000000000000000001"),
            "0",
            "411376139330301510583343786036398872528755402953691688849113088",
        ),
        (
            Some("0x10000000000000001.000000000000000000000000000000000001"),
            "0",
            "18446744073709551618",
        ),
        (
            Some("1606938044258990275629074378272922849168826893285325497434112"),
            "0",
            "1606938044258990275541962092341162602522202993782792835301376",
        ),
        (
            Some("1606938044258990275629074378272922849168826893285325497434113"),
            "0",
            "1606938044258990275716186664204683095815450792787858159566848",
        ),
    ] {
        assert_eq!(float_sum(value, amount).as_deref(), Ok(expected), "{value:?} and {amount:?}");
    }
}

#[test]
fn float_texts_and_sums_are_rejected_as_redis_does() {
    for (value, amount, expected) in [
        (Some("1.8e-4951"), "0", NotANumber),
        (Some("1e-4951"), "0", NotANumber),
        (Some("1e-99999999999999999999"), "0", NotANumber),
        (Some("0x1p-16446"), "0", NotANumber),
        (Some("0x1p16384"), "0", NotANumber),
        (Some("1e4933"), "0", NotANumber),
        (Some("1.2e4932"), "0", NotANumber),
        (Some("inf"), "0", Overflow),
        (Some("-inf"), "inf", Overflow),
        (Some("0"), "Infinity", Overflow),
        (Some("+INF"), "1", Overflow),
        (Some("nan"), "0", NotANumber),
        (Some("1"), "nan(7)", NotANumber),
        (Some("abc"), "1", NotANumber),
        (Some("1"), "abc", NotANumber),
        (Some(""), "1", NotANumber),
        (Some("1"), "", NotANumber),
        (Some(" 1"), "1", NotANumber),
        (Some("1 "), "1", NotANumber),
        (Some("1\n"), "1", NotANumber),
        (Some("1\0"), "1", NotANumber),
        (Some("1_0"), "1", NotANumber),
        (Some("1,5"), "1", NotANumber),
        (None, "1e", NotANumber),
        (Some("1e+"), "1", NotANumber),
        (Some("1e1.5"), "1", NotANumber),
        (Some("1.2.3"), "1", NotANumber),
        (Some("."), "1", NotANumber),
        (Some("-."), "1", NotANumber),
        (Some("--1"), "1", NotANumber),
        (Some("+-1"), "1", NotANumber),
        (Some("0x"), "1", NotANumber),
        (Some("0x."), "1", NotANumber),
        (Some("0x1p"), "1", NotANumber),
        (Some("0xg"), "1", NotANumber),
        (Some("infinit"), "1", NotANumber),
        (Some("e5"), "1", NotANumber),
        (Some(".e5"), "1", NotANumber),
        (Some("0x1p16383"), "0x1p16383", Overflow),
        (Some("0x1.fffffffffffffffep16383"), "0x1p16319", Overflow),
        (Some("1.18973149535723176509e4932"), "0", NotANumber),
        (Some("1.18973149535723176502e4932"), "1.18973149535723176502e4932", Overflow),
    ] {
        assert_eq!(float_sum(value, amount), Err(expected), "{value:?} and {amount:?}");
    }
    assert_eq!(add_float(Some(b"1\xff"), b"1"), Err(NotANumber));
}

#[test]
fn long_float_sums_are_those_of_redis() {
    // Each row has the length of the text, its first digits and its CRC-32C.
    for (value, amount, length, start, checksum) in [
        ("1e300", "0", 301, "1000000000000000000008997", 0x5a7d_209e),
        ("1e4000", "0", 4000, "9999999999999999999965463", 0x521a_f1a4),
        ("1e4000", "1e3999", 4001, "1100000000000000000016052", 0x1707_a67b),
        ("-1e4932", "1", 4934, "-100000000000000000000601", 0xbdf5_1f7b),
        ("1.18973149535723176502e4932", "0", 4933, "1189731495357231765021263", 0xbeaf_d7ce),
        ("1.18973149535723176505e4932", "0", 4933, "1189731495357231765021263", 0xbeaf_d7ce),
    ] {
        let sum = float_sum(Some(value), amount).unwrap();
        assert_eq!(sum.len(), length, "{value} and {amount}");
        assert!(sum.starts_with(start), "{value} and {amount}: {sum}");
        assert_eq!(crc32c::crc32c(sum.as_bytes()), checksum, "{value} and {amount}: {sum}");
        // Each result is a text that is read back without a change.
        assert_eq!(float_sum(Some(&sum), "0"), Ok(sum));
    }
}

#[test]
fn float_texts_of_at_most_5119_bytes_are_read() {
    let zeros = "0".repeat(5_117);
    assert_eq!(float_sum(Some(&format!("1.{zeros}")), "1"), Ok("2".to_owned()));
    assert_eq!(float_sum(Some("1"), &format!("0{zeros}3")), Ok("4".to_owned()));
    assert_eq!(float_sum(Some(&format!("1.{zeros}0")), "1"), Err(NotANumber));
    assert_eq!(float_sum(Some("1"), &format!("00{zeros}3")), Err(NotANumber));
}

proptest! {
    #[test]
    fn every_integer_comes_back(number: i64) {
        let text = format_integer(number);
        prop_assert_eq!(text.to_vec(), number.to_string().into_bytes());
        prop_assert_eq!(parse_integer(&text), Some(number));
    }

    #[test]
    fn a_text_that_is_read_as_an_integer_is_the_one_that_is_written(text in "-?[0-9]{0,20}") {
        if let Some(number) = parse_integer(text.as_bytes()) {
            prop_assert_eq!(&*format_integer(number), text.as_bytes());
        }
    }

    #[test]
    fn integers_are_added_as_with_128_bits(
        value: i64,
        amount: i64,
        value_shift in 0..64_u32,
        amount_shift in 0..64_u32,
    ) {
        let (value, amount) = (value >> value_shift, amount >> amount_shift);
        let sum = i64::try_from(i128::from(value) + i128::from(amount)).map_err(|_| Overflow);
        prop_assert_eq!(add_integer(Some(&format_integer(value)), amount), sum);
    }

    #[test]
    fn floats_without_a_fraction_are_added_as_integers(value: i64, amount: i64) {
        let (value, amount) = (value / 2, amount / 2);
        let sum = add_float(Some(&format_integer(value)), &format_integer(amount)).unwrap();
        prop_assert_eq!(&*sum, &*format_integer(value + amount));
    }

    #[test]
    fn float_sums_are_read_back_and_do_not_depend_on_the_order(
        one in "[0-9]{1,30}(\\.[0-9]{0,30})?(e-?[0-9]{1,4})?",
        other in "-?(0x[0-9a-f]{1,20}(p-?[0-9]{1,5})?|[0-9]{1,30}(e-?[0-9]{1,4})?)",
    ) {
        let sum = float_sum(Some(&one), &other);
        prop_assert_eq!(&sum, &float_sum(Some(&other), &one));
        if let Ok(sum) = sum {
            prop_assert_eq!(float_sum(Some(&sum), "-0"), Ok(sum));
        }
    }

    #[test]
    fn random_texts_never_panic(
        value in "[0-9.eExXpP+\\-infaty]{0,12}",
        amount in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        let _ = add_integer(Some(value.as_bytes()), 1);
        let _ = add_float(Some(value.as_bytes()), b"1");
        let _ = add_float(Some(&amount), value.as_bytes());
    }
}
