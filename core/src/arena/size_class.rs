//! Rounding of allocation sizes.
//!
//! ```text
//!   up to 8 pages      a size class: 16-byte steps to 128 bytes, then eight steps to each doubling
//!   up to 64 pages     whole pages of a chunk (a page is 1/512 of it)
//!   above              a block: whole pages, outside of the chunks
//! ```
//!
//! Rounding wastes less than one ninth of an allocation, or at most 15 bytes if it has up to 128 bytes.

use super::UNIT_BYTES;
use super::page_map::PAGES_PER_CHUNK;

/// The maximum size, in pages, that has a size class.
const CLASS_PAGES_MAX: usize = 8;
/// The maximum size, in pages, of an allocation in a chunk: an eighth of the chunk. With this limit, moves can fill
/// chunks to seven eighths.
pub(super) const RUN_PAGES_MAX: usize = PAGES_PER_CHUNK / 8;
/// The number of classes in steps of 16 bytes: classes 0 to 7 are the multiples of 16 up to 128.
const LINEAR_CLASSES: usize = 8;
/// The preferred number of pages of a slab. Larger slabs spread the cost of bookkeeping over more objects.
const SLAB_PAGES_PREFERRED: usize = 4;
/// The maximum number of pages that any class needs for a slab with little waste.
pub(super) const SLAB_PAGES_MAX: usize = 32;
/// The maximum share of a slab (a divisor) that may be wasted at its end.
const SLAB_WASTE_DIVISOR: usize = 32;

/// The number of size classes if the chunk has the maximum size.
pub(super) const CLASSES_MAX: usize = 112;

/// The placement of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// An object of this class in a slab.
    Class(usize),
    /// A run of this many pages in one chunk.
    Pages(usize),
    /// A block of this many pages.
    Block(usize),
}

/// The rounding rules for one chunk size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    chunk_bytes: usize,
    page_bytes: usize,
}

impl Sizes {
    pub(super) fn new(chunk_bytes: usize) -> Sizes {
        Sizes { chunk_bytes, page_bytes: chunk_bytes / PAGES_PER_CHUNK }
    }

    pub(super) fn chunk_bytes(self) -> usize {
        self.chunk_bytes
    }

    pub(super) fn page_bytes(self) -> usize {
        self.page_bytes
    }

    /// Returns the placement of `bytes` (not zero).
    pub(super) fn fit(self, bytes: usize) -> Fit {
        if bytes <= CLASS_PAGES_MAX * self.page_bytes {
            Fit::Class(class_of(bytes.div_ceil(UNIT_BYTES)))
        } else {
            match bytes.div_ceil(self.page_bytes) {
                pages @ ..=RUN_PAGES_MAX => Fit::Pages(pages),
                pages => Fit::Block(pages),
            }
        }
    }

    /// Returns the number of bytes that a placement takes.
    pub(super) fn bytes_of(self, fit: Fit) -> usize {
        match fit {
            Fit::Class(class) => class_units(class) * UNIT_BYTES,
            Fit::Pages(pages) | Fit::Block(pages) => pages * self.page_bytes,
        }
    }

    /// Returns the minimum number of pages of a slab of this class.
    pub(super) fn slab_pages_min(self, class: usize) -> usize {
        (1..SLAB_PAGES_MAX).find(|&pages| self.is_good_slab(class, pages)).unwrap_or(SLAB_PAGES_MAX)
    }

    /// Returns the number of pages that a slab of this class gets from a free run of `available` pages. The run is
    /// long enough for the smallest slab. Short runs are used too, so that the gaps between larger allocations do
    /// not stay empty.
    pub(super) fn slab_pages(self, class: usize, available: usize) -> usize {
        (1..=available.min(SLAB_PAGES_PREFERRED))
            .rev()
            .find(|&pages| self.is_good_slab(class, pages))
            .unwrap_or_else(|| self.slab_pages_min(class))
    }

    fn is_good_slab(self, class: usize, pages: usize) -> bool {
        let (object, slab) = (class_units(class) * UNIT_BYTES, pages * self.page_bytes);
        object <= slab && (slab % object) * SLAB_WASTE_DIVISOR <= slab
    }
}

/// Returns the smallest class whose objects have at least `units` units of 16 bytes; `units` is at least 1.
fn class_of(units: usize) -> usize {
    if units <= LINEAR_CLASSES {
        return units - 1;
    }
    // Sizes above 2^k and up to 2^(k+1) share eight classes.
    let below = units - 1;
    let k = below.ilog2();
    let step = k - LINEAR_CLASSES.ilog2();
    LINEAR_CLASSES * (1 + step as usize) + ((below - (1 << k)) >> step)
}

/// Returns the size of a class's objects in units of 16 bytes.
pub(super) fn class_units(class: usize) -> usize {
    if class < LINEAR_CLASSES {
        return class + 1;
    }
    let step = class / LINEAR_CLASSES - 1;
    let within = class % LINEAR_CLASSES;
    (LINEAR_CLASSES + within + 1) << step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN};

    #[test]
    fn a_class_holds_its_sizes_and_wastes_less_than_a_ninth() {
        for units in 1..=65_536 {
            let class = class_of(units);
            let size = class_units(class);
            assert!(size >= units, "{units} units do not fit class {class} of {size}");
            assert!(class == 0 || class_units(class - 1) < units, "{units} fit a smaller class");
            assert!(units <= 8 || (size - units) * 9 < size, "{units} units waste too much");
        }
    }

    #[test]
    fn every_class_of_every_chunk_size_has_a_number_and_a_slab() {
        let mut chunk_bytes = CHUNK_BYTES_MIN;
        while chunk_bytes <= CHUNK_BYTES_MAX {
            let sizes = Sizes::new(chunk_bytes);
            let largest = sizes.page_bytes() * CLASS_PAGES_MAX;
            let Fit::Class(last) = sizes.fit(largest) else { panic!("{largest} is a class") };
            assert!(last < CLASSES_MAX);
            assert!(matches!(sizes.fit(largest + 1), Fit::Pages(_)));
            for class in 0..=last {
                for available in sizes.slab_pages_min(class)..40 {
                    let pages = sizes.slab_pages(class, available);
                    assert!(pages <= available && sizes.is_good_slab(class, pages), "{class}");
                }
            }
            chunk_bytes *= 2;
        }
    }

    #[test]
    fn a_small_entry_of_the_memory_target_takes_96_bytes() {
        let sizes = Sizes::new(CHUNK_BYTES_DEFAULT);
        assert_eq!(sizes.bytes_of(sizes.fit(16 + 16 + 64)), 96);
    }
}
