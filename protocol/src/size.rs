//! Human-readable sizes: `512M`, `4GiB`.

/// Parses a size with an optional unit and returns it in bytes. K and KiB, and the larger units of these forms, are
/// powers of 1024; KB and its larger units are powers of 1000.
///
/// # Errors
/// A message if the text is not a size, or if the size does not fit in 64 bits.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) if digits > 0 => return Err(format!("{text} does not fit in 64 bits")),
        Err(_) => {
            return Err(format!("`{text}` is not a size; write a number of bytes, 512M or 4GiB"));
        }
    };
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        other => return Err(format!("unknown unit `{other}`; write K, M, G, T, KiB or KB")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text} does not fit in 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units() {
        for (text, bytes) in
            [("0", 0), ("1", 1), ("2K", 2048), ("3MiB", 3 << 20), ("4G", 4 << 30), ("5KB", 5_000)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "1X", "-1", "99999999999T", "99999999999999999999", "1.5G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
