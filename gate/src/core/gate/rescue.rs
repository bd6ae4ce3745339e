//! What the caller does after a panic, when the gate may be broken: it takes out the commands that are held and the
//! numbers of keys with mail away, so that no mail is lost.

#![forbid(unsafe_code)]

use super::Gate;
use crate::core::slots::SlotState;

impl Gate {
    /// The slot and the handle of the command that [`Gate::next`] was handing out.
    pub fn rescue_handing_out(&mut self) -> Option<(u32, u32)> {
        let (slot, command) = self.handing_out.take()?;
        self.abandon(slot);
        Some((slot, command))
    }

    /// Frees the next held slot from `from` on, and returns it with the handle of its command. Nothing else changes.
    pub fn rescue(&mut self, from: u32) -> Option<(u32, u32)> {
        let slot = (from..self.slots.len() as u32)
            .find(|&slot| self.slots[slot as usize].state == SlotState::Held)?;
        self.abandon(slot);
        Some((slot, self.slots[slot as usize].command))
    }

    /// Frees a slot whose command the caller has already.
    pub fn abandon(&mut self, slot: u32) {
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            entry.state = SlotState::Free;
        }
    }

    /// The number of a key with mail away; each is returned once.
    pub fn rescue_call(&mut self) -> Option<u32> {
        self.keys_away.pop().map(|at| self.keys.all[at as usize].key.number)
    }

    /// How many held slots [`Gate::rescue`] would still find.
    #[must_use]
    pub fn to_rescue(&self, from: u32) -> u32 {
        self.slots.iter().skip(from as usize).filter(|slot| slot.state == SlotState::Held).count()
            as u32
    }
}
