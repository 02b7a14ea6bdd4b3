//! Tests in which every word of a dictionary is written and read back through the command line.

use std::fmt::Write as _;

use crate::common::Cluster;

const DICTIONARY: &str = "/usr/share/dict/american-english";
const FEWEST_WORDS: usize = 100_000;

fn dictionary() -> String {
    let text = std::fs::read_to_string(DICTIONARY).unwrap_or_else(|error| {
        panic!("{DICTIONARY}: {error}; install Debian's package wamerican (apt install wamerican)")
    });
    assert!(text.lines().count() >= FEWEST_WORDS, "{DICTIONARY} is not wamerican's word list");
    text
}

/// Returns a different value for each word.
fn value(word: &str, place: usize) -> String {
    format!("{place}:{}", word.chars().rev().collect::<String>())
}

/// Puts, gets and checks every word, with one operations file each, and compares line by line.
fn every_word_comes_back_with(shards: u16) {
    let words = dictionary();
    let words: Vec<&str> = words.lines().collect();
    let cluster = Cluster::builder().shards(shards).start();
    let (mut puts, mut gets, mut checks) = (String::new(), String::new(), String::new());
    let (mut written, mut read, mut checked) = (String::new(), String::new(), String::new());
    for (place, word) in words.iter().enumerate() {
        let value = value(word, place);
        writeln!(puts, "P \"{word}\" \"{value}\"").expect("a string takes all");
        writeln!(gets, "G \"{word}\"").expect("a string takes all");
        writeln!(checks, "V \"{word}\" \"{value}\"").expect("a string takes all");
        writeln!(written, "value[\"{word}\"] <- \"{value}\"").expect("a string takes all");
        writeln!(read, "value[\"{word}\"] == \"{value}\"").expect("a string takes all");
        writeln!(checked, "check passed").expect("a string takes all");
    }
    let ended = cluster.client_file("puts.txt", &puts).with_code(0);
    compare(&ended.stdout, &written, |got, expected| got == expected);
    let ended = cluster.client_file("gets.txt", &gets).with_code(0);
    compare(&ended.stdout, &read, |got, expected| got == expected);
    let ended = cluster.client_file("checks.txt", &checks).with_code(0);
    compare(&ended.stdout, &checked, |got, expected| got.starts_with(expected));
    cluster.stop().assert_copies_agree();
}

fn compare(got: &str, expected: &str, is_as: impl Fn(&str, &str) -> bool) {
    for (number, (got, expected)) in got.lines().zip(expected.lines()).enumerate() {
        assert!(is_as(got, expected), "line {}: {got}\n  expected: {expected}", number + 1);
    }
    assert_eq!(got.lines().count(), expected.lines().count(), "one line for each operation");
}

#[test]
fn every_word_comes_back_from_a_cluster_with_one_shard() {
    every_word_comes_back_with(1);
}

#[test]
fn every_word_comes_back_from_a_cluster_with_two_shards() {
    every_word_comes_back_with(2);
}

#[test]
fn every_word_comes_back_from_a_cluster_with_four_shards() {
    every_word_comes_back_with(4);
}
