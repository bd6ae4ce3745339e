//! After a panic, when the gate may be broken: what is held and away is not to be lost.

#![forbid(unsafe_code)]

use super::Gate;
use crate::core::slots::SlotState;

impl Gate {
    /// For the time after a panic, when the gate may be broken: the slot and the command that were about to be given.
    pub fn rescue_handing_out(&mut self) -> Option<(u32, u32)> {
        let (slot, command) = self.handing_out.take()?;
        self.abandon(slot);
        Some((slot, command))
    }

    /// For the same: the next slot from `from` on that is held, which is free then, and the handle of its command.
    /// Nothing else is touched.
    pub fn rescue(&mut self, from: u32) -> Option<(u32, u32)> {
        let slot = (from..self.slots.len() as u32)
            .find(|&slot| self.slots[slot as usize].state == SlotState::Held)?;
        self.abandon(slot);
        Some((slot, self.slots[slot as usize].command))
    }

    /// For the same: the caller has the command of this slot, so it is not to be rescued.
    pub fn abandon(&mut self, slot: u32) {
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            entry.state = SlotState::Free;
        }
    }

    /// And a key whose mail is away: its number.
    pub fn rescue_call(&mut self) -> Option<u32> {
        self.keys_away.pop().map(|at| self.keys.all[at as usize].key.number)
    }

    /// How many [`Gate::rescue`] would still find.
    #[must_use]
    pub fn to_rescue(&self, from: u32) -> u32 {
        self.slots.iter().skip(from as usize).filter(|slot| slot.state == SlotState::Held).count()
            as u32
    }
}
