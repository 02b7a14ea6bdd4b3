//! Blocks: allocations above an eighth of a chunk. Each takes exactly the pages that it needs.
//!
//! Chunks would waste memory with such sizes: only two values of 700 KiB fit in a chunk of 2 MiB. So a block is placed
//! in a window. A window is an address range of the size of a chunk; only the pages that belong to blocks have memory.
//! A block above the size of a chunk has its own mapping.
//!
//! Evacuations do not move blocks, because a move would gain no memory.
//!
//! The page fault at the first access to a page costs far more than filling the page. So the pages of the most recently
//! freed blocks stay warm: they keep their memory for later blocks, up to the size of a chunk in total. An operation
//! that takes memory from the source first returns the same amount of warm memory.

use std::ptr::NonNull;

use super::chunk::{Chunk, small_u16};
use super::page_map::{PAGES_PER_CHUNK, PageMap};
use super::{Arena, small};

/// The maximum number of pages that stay warm.
const WARM_PAGES_MAX: usize = PAGES_PER_CHUNK;

/// A run of pages of a window.
#[derive(Debug)]
pub(super) struct Run {
    window: u32,
    page: usize,
    pages: usize,
}

/// Allocation of blocks.
impl Arena {
    pub(super) fn allocate_block(&mut self, pages: usize) -> Option<u32> {
        let handle = match self.warm_run(pages) {
            Some(at) => self.take_warm(at, pages),
            None if pages <= PAGES_PER_CHUNK => self.take_from_window(pages)?,
            None => {
                self.cool(pages);
                let number = self.vacant_number()?;
                let bytes = pages * self.sizes.page_bytes();
                let base = self.source.allocate(bytes)?;
                self.occupy(number, base, Chunk::Block(bytes));
                self.handle_of(number, 0)
            }
        };
        self.block_pages += pages;
        Some(handle)
    }

    pub(super) fn free_block(&mut self, number: u32, page: usize, pages: usize) {
        self.block_pages -= pages;
        if pages > PAGES_PER_CHUNK {
            return self.release_number(number);
        }
        self.warm.push_back(Run { window: number, page, pages });
        self.warm_pages += pages;
        self.cool(self.warm_pages.saturating_sub(WARM_PAGES_MAX));
    }

    /// Returns the number of bytes that a block would take from the source, minus the warm pages that would be
    /// returned first.
    pub(super) fn fresh_block_bytes(&self, pages: usize) -> usize {
        match self.warm_run(pages) {
            Some(_) => 0,
            None => pages.saturating_sub(self.warm_pages) * self.sizes.page_bytes(),
        }
    }

    /// Returns at least this many warm pages, or all of them, to the source. The oldest are returned first.
    pub(super) fn cool(&mut self, pages: usize) {
        let pages_left = self.warm_pages.saturating_sub(pages);
        while self.warm_pages > pages_left {
            let Some(Run { window, page, pages }) = self.warm.pop_front() else { return };
            self.warm_pages -= pages;
            let map = self.window(window);
            map.give(page, pages);
            let (longest, is_empty) = (map.longest_run(), map.is_empty());
            if is_empty {
                self.window_runs.set(window as usize, 0);
                self.windows -= 1;
                self.release_number(window);
                continue;
            }
            self.window_runs.set(window as usize, longest);
            let page_bytes = self.sizes.page_bytes();
            let at = self.bases[window as usize].wrapping_add(page * page_bytes);
            let at = NonNull::new(at).expect("a window has an address");
            // SAFETY: these pages belong to a window of this source, and no block uses them.
            unsafe { self.source.discard(at, pages * page_bytes) };
        }
    }

    /// Returns the newest warm run that is long enough. The newest one is the most likely to be in the processor's
    /// caches.
    fn warm_run(&self, pages: usize) -> Option<usize> {
        self.warm.iter().rposition(|run| run.pages >= pages)
    }

    fn take_warm(&mut self, at: usize, pages: usize) -> u32 {
        let run = &mut self.warm[at];
        let (window, page) = (run.window, run.page);
        run.page += pages;
        run.pages -= pages;
        if run.pages == 0 {
            self.warm.remove(at);
        }
        self.warm_pages -= pages;
        self.handle_of(window, page)
    }

    /// Takes pages from the first window with a long enough free run.
    fn take_from_window(&mut self, pages: usize) -> Option<u32> {
        self.cool(pages);
        let number = match self.window_runs.find(pages, None) {
            Some(number) => small(number),
            None => self.add_window()?,
        };
        let map = self.window(number);
        let (page, _) = map.find(pages).expect("the index has the longest run");
        map.take(page, pages);
        let longest = map.longest_run();
        self.window_runs.set(number as usize, longest);
        Some(self.handle_of(number, page))
    }

    fn add_window(&mut self) -> Option<u32> {
        let number = self.vacant_number()?;
        let base = self.source.reserve()?;
        self.windows += 1;
        self.occupy(number, base, Chunk::Window(Box::new(PageMap::new())));
        self.window_runs.set(number as usize, small_u16(PAGES_PER_CHUNK));
        Some(number)
    }

    fn window(&mut self, number: u32) -> &mut PageMap {
        match &mut self.chunks[number as usize] {
            Chunk::Window(map) => map,
            _ => panic!("number {number} is not a window"),
        }
    }
}
