//! The free pages of a chunk, and an index of the chunks by their longest free runs.

/// The number of pages of a chunk; with chunks of 2 MiB a page has 4 KiB.
pub(super) const PAGES_PER_CHUNK: usize = 512;
const WORD_BITS: usize = u64::BITS as usize;
const WORDS: usize = PAGES_PER_CHUNK / WORD_BITS;

/// A bit map of pages; a set bit is a free page.
#[derive(Debug)]
pub(super) struct PageMap {
    free: [u64; WORDS],
}

impl PageMap {
    /// Creates a map whose pages are all free.
    pub(super) fn new() -> PageMap {
        PageMap { free: [u64::MAX; WORDS] }
    }

    /// Returns the first page and the length of the first free run of at least `pages` pages.
    pub(super) fn find(&self, pages: usize) -> Option<(usize, usize)> {
        self.runs().find(|&(_, length)| length >= pages)
    }

    /// Takes `pages` pages starting at `start`, all of which must be free.
    pub(super) fn take(&mut self, start: usize, pages: usize) {
        for_each_mask(start, pages, |word, mask| {
            debug_assert_eq!(self.free[word] & mask, mask, "a page was taken twice");
            self.free[word] &= !mask;
        });
    }

    /// Frees `pages` pages starting at `start`, none of which may be free.
    pub(super) fn give(&mut self, start: usize, pages: usize) {
        for_each_mask(start, pages, |word, mask| {
            debug_assert_eq!(self.free[word] & mask, 0, "a page was freed twice");
            self.free[word] |= mask;
        });
    }

    /// Returns the length of the longest free run.
    pub(super) fn longest_run(&self) -> u16 {
        let longest = self.runs().map(|(_, length)| length).max().unwrap_or(0);
        u16::try_from(longest).expect("a chunk has few pages")
    }

    pub(super) fn free_pages(&self) -> usize {
        self.free.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.iter().all(|&word| word == u64::MAX)
    }

    /// Returns the free runs in order: first page and length.
    fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_page(from, true)?;
            let end = self.next_page(start, false).unwrap_or(PAGES_PER_CHUNK);
            from = end;
            Some((start, end - start))
        })
    }

    /// Returns the first page at or after `from` that is free (if `free` is true) or taken (if it is false).
    fn next_page(&self, from: usize, free: bool) -> Option<usize> {
        let mut word = from / WORD_BITS;
        let mut bits_wanted = u64::MAX << (from % WORD_BITS);
        while word < WORDS {
            let bits = if free { self.free[word] } else { !self.free[word] } & bits_wanted;
            if bits != 0 {
                return Some(word * WORD_BITS + bits.trailing_zeros() as usize);
            }
            bits_wanted = u64::MAX;
            word += 1;
        }
        None
    }
}

/// Calls `apply` for each word of the bit map that has bits of these pages, with the index of the word and a mask
/// of these bits.
fn for_each_mask(start: usize, pages: usize, mut apply: impl FnMut(usize, u64)) {
    assert!(start + pages <= PAGES_PER_CHUNK, "pages {start}+{pages} are not in one chunk");
    let mut page = start;
    while page < start + pages {
        let bit = page % WORD_BITS;
        let bits = (WORD_BITS - bit).min(start + pages - page);
        apply(page / WORD_BITS, (u64::MAX >> (WORD_BITS - bits)) << bit);
        page += bits;
    }
}

/// An index of chunks by their longest free runs. A second level holds the maximum over every 64 chunks, so that a
/// search does not scan every chunk.
#[derive(Debug, Default)]
pub(super) struct RunIndex {
    longest: Vec<u16>,
    longest_of_group: Vec<u16>,
}

const GROUP: usize = 64;

impl RunIndex {
    /// Records the longest free run of a chunk (0 for a chunk that accepts no allocation).
    pub(super) fn set(&mut self, chunk: usize, longest_run: u16) {
        if chunk >= self.longest.len() {
            self.longest.resize(chunk + 1, 0);
            self.longest_of_group.resize(self.longest.len().div_ceil(GROUP), 0);
        }
        self.longest[chunk] = longest_run;
        let group = chunk / GROUP;
        let end = self.longest.len().min((group + 1) * GROUP);
        let longest = self.longest[group * GROUP..end].iter().copied().max();
        self.longest_of_group[group] = longest.unwrap_or(0);
    }

    /// Returns the first chunk, other than `except`, with a free run of at least `pages` pages.
    pub(super) fn find(&self, pages: usize, except: Option<usize>) -> Option<usize> {
        let fits = |&longest: &u16| usize::from(longest) >= pages;
        let groups = self.longest_of_group.iter().enumerate();
        groups.filter(|(_, longest)| fits(longest)).find_map(|(group, _)| {
            let end = self.longest.len().min((group + 1) * GROUP);
            (group * GROUP..end).find(|&chunk| fits(&self.longest[chunk]) && Some(chunk) != except)
        })
    }

    pub(super) fn heap_bytes(&self) -> usize {
        (self.longest.capacity() + self.longest_of_group.capacity()) * size_of::<u16>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_first_fit_and_merge_when_freed() {
        let mut map = PageMap::new();
        assert_eq!((map.longest_run(), map.find(60)), (512, Some((0, 512))));
        map.take(0, 60);
        assert_eq!(map.find(100), Some((60, 452)));
        map.take(60, 100);
        map.take(160, 352);
        assert_eq!((map.longest_run(), map.find(1)), (0, None));
        map.give(0, 60);
        map.give(160, 352);
        assert_eq!((map.longest_run(), map.find(60)), (352, Some((0, 60))));
        assert_eq!(map.find(61), Some((160, 352)));
        map.give(60, 100);
        assert!(map.is_empty());
        assert_eq!(map.find(512), Some((0, 512)));
    }

    #[test]
    fn the_index_finds_the_first_chunk_that_is_not_excluded() {
        let mut index = RunIndex::default();
        index.set(3, 10);
        index.set(70, 20);
        index.set(200, 20);
        assert_eq!(index.find(10, None), Some(3));
        assert_eq!(index.find(10, Some(3)), Some(70));
        assert_eq!(index.find(11, None), Some(70));
        assert_eq!(index.find(20, Some(70)), Some(200));
        index.set(70, 0);
        index.set(200, 19);
        assert_eq!(index.find(20, None), None);
    }
}
