//! Slabs: runs of pages that hold objects of one size class.
//!
//! Each slab has a free list, whose links are stored in the free objects. The slabs of a class that have a free object
//! form a list. A full slab is in no list. The pages of an empty slab are returned to its chunk.

use super::size_class::{SLAB_PAGES_MAX, class_units};
use super::{Arena, Handle, UNIT_BYTES, small};

/// The number of a slab; [`NO_SLAB`] ends a list.
pub(super) type SlabId = u32;
pub(super) const NO_SLAB: SlabId = SlabId::MAX;

/// A run of pages that holds objects of one class.
#[derive(Debug)]
pub(super) struct Slab {
    /// The handle of the first object.
    first: u32,
    /// The head of the free list; 0 if it is empty. A free object holds the next one's handle in its first bytes.
    free: u32,
    pub(super) capacity: u32,
    /// The number of objects at the front that were allocated at least once. The objects after them are free too,
    /// but not in the free list.
    carved: u32,
    pub(super) live: u32,
    /// The neighbours in the list of slabs of this class that have a free object.
    previous: SlabId,
    next: SlabId,
    pub(super) class: u16,
    pub(super) pages: u8,
    /// True if the chunk of this slab is being emptied. The slab is then in no list, although it may have free objects.
    pub(super) is_leaving: bool,
}

const _: () = assert!(SLAB_PAGES_MAX <= u8::MAX as usize && size_of::<Slab>() == 32);

impl Slab {
    pub(super) fn is_full(&self) -> bool {
        self.free == 0 && self.carved == self.capacity
    }
}

/// Allocation of objects of a size class.
impl Arena {
    pub(super) fn allocate_object(&mut self, class: usize) -> Option<u32> {
        let id = match self.open_slabs[class] {
            NO_SLAB => self.open_slab(class)?,
            id => id,
        };
        let slab = &self.slabs[id as usize];
        let listed = Handle::from_bits(slab.free).map(|handle| {
            let link = self.address(handle).cast::<u32>();
            // SAFETY: an object in a free list belongs to this arena. It is aligned, at least 16 bytes long, and
            // contains the handle of the next free object, which `free_object` wrote.
            (handle.to_bits(), unsafe { link.read() })
        });
        let slab = &mut self.slabs[id as usize];
        let handle = match listed {
            Some((handle, next_free)) => {
                slab.free = next_free;
                handle
            }
            None => {
                debug_assert!(slab.carved < slab.capacity, "an open slab has a free object");
                slab.carved += 1;
                slab.first + (slab.carved - 1) * small(class_units(class))
            }
        };
        slab.live += 1;
        if slab.is_full() {
            self.unlink_slab(id);
        }
        Some(handle)
    }

    /// # Safety
    ///
    /// `handle` is a live object in this page, and its memory is no longer used.
    pub(super) unsafe fn free_object(&mut self, handle: Handle, chunk: u32, page: usize) {
        let id = self.paged(chunk).slab_of_page[page];
        let link = self.address(handle).cast::<u32>();
        let slab = &mut self.slabs[id as usize];
        debug_assert!(slab.live > 0, "an object was freed twice");
        let was_full = slab.is_full();
        // SAFETY: the object is at least 16 bytes long, aligned, and no longer used.
        unsafe { link.write(slab.free) };
        slab.free = handle.to_bits();
        slab.live -= 1;
        if slab.live == 0 {
            let (first, pages) = (slab.first, usize::from(slab.pages));
            if !was_full && !slab.is_leaving {
                self.unlink_slab(id);
            }
            self.vacant_slabs.push(id);
            let (chunk, page) = self.page_of_bits(first);
            self.paged(chunk).slab_of_page[page..page + pages].fill(NO_SLAB);
            self.give_pages(chunk, page, pages);
        } else if was_full && !slab.is_leaving {
            self.link_slab(id);
        }
    }

    /// Creates a slab of this class and puts it at the head of the list of open slabs.
    fn open_slab(&mut self, class: usize) -> Option<SlabId> {
        let sizes = self.sizes;
        let (chunk, page, pages) =
            self.take_pages(sizes.slab_pages_min(class), |length| sizes.slab_pages(class, length))?;
        let object_bytes = class_units(class) * UNIT_BYTES;
        let slab = Slab {
            first: self.handle_of(chunk, page),
            free: 0,
            capacity: small(pages * self.sizes.page_bytes() / object_bytes),
            carved: 0,
            live: 0,
            previous: NO_SLAB,
            next: NO_SLAB,
            class: u16::try_from(class).expect("there are few classes"),
            pages: u8::try_from(pages).expect("a slab has few pages"),
            is_leaving: false,
        };
        let id = match self.vacant_slabs.pop() {
            Some(id) => {
                self.slabs[id as usize] = slab;
                id
            }
            None => {
                self.slabs.push(slab);
                small(self.slabs.len() - 1)
            }
        };
        self.paged(chunk).slab_of_page[page..page + pages].fill(id);
        self.link_slab(id);
        Some(id)
    }

    pub(super) fn link_slab(&mut self, id: SlabId) {
        let class = usize::from(self.slabs[id as usize].class);
        let next = std::mem::replace(&mut self.open_slabs[class], id);
        if next != NO_SLAB {
            self.slabs[next as usize].previous = id;
        }
        let slab = &mut self.slabs[id as usize];
        slab.previous = NO_SLAB;
        slab.next = next;
    }

    pub(super) fn unlink_slab(&mut self, id: SlabId) {
        let Slab { previous, next, class, .. } = self.slabs[id as usize];
        match previous {
            NO_SLAB => self.open_slabs[usize::from(class)] = next,
            previous => self.slabs[previous as usize].next = next,
        }
        if next != NO_SLAB {
            self.slabs[next as usize].previous = previous;
        }
    }
}
