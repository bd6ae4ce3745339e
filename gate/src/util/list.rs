//! Doubly linked lists of the elements of a vector, which hold the links themselves. Nothing is allocated, and an
//! element leaves its list in constant time.

#![forbid(unsafe_code)]

/// No position.
pub(crate) const NONE: u32 = u32::MAX;

/// The neighbours of an element in a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) next: u32,
    pub(crate) prev: u32,
}

/// In no list.
pub(crate) const UNLINKED: Link = Link { next: NONE, prev: NONE };

/// The ends of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    pub(crate) first: u32,
    pub(crate) last: u32,
}

/// An empty list.
pub(crate) const EMPTY: List = List { first: NONE, last: NONE };

/// Puts `at` at the end of a list.
pub(crate) fn append<T>(
    list: &mut List,
    at: u32,
    all: &mut [T],
    link: impl Fn(&mut T) -> &mut Link,
) {
    *link(&mut all[at as usize]) = Link { next: NONE, prev: list.last };
    match list.last {
        NONE => list.first = at,
        last => link(&mut all[last as usize]).next = at,
    }
    list.last = at;
}

/// Takes `at` out of the list that it is in.
pub(crate) fn unlink<T>(
    list: &mut List,
    at: u32,
    all: &mut [T],
    link: impl Fn(&mut T) -> &mut Link,
) {
    let Link { next, prev } = std::mem::replace(link(&mut all[at as usize]), UNLINKED);
    match prev {
        NONE => list.first = next,
        prev => link(&mut all[prev as usize]).next = next,
    }
    match next {
        NONE => list.last = prev,
        next => link(&mut all[next as usize]).prev = prev,
    }
}
