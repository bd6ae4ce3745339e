//! Written by bindgen from gate.h; tests/bindings.rs compares the two.

pub const GATE_NONE: u32 = 0;
pub const GATE_GO: u32 = 1;
pub const GATE_HOLD: u32 = 2;
pub const GATE_BUSY: u32 = 3;
pub const GATE_CALL: u32 = 4;
pub const GATE_CALL_SLOT: u32 = 65535;
pub const GATE_PARTS: u32 = 8;
pub const GATE_PART_MAX: u32 = 65536;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct gate_text {
    pub s: *const ::core::ffi::c_char,
    pub len: ::core::ffi::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct gate_next {
    pub slot: ::core::ffi::c_uint,
    pub parts: ::core::ffi::c_uint,
    pub part: [gate_text; 8usize],
    pub text: *const ::core::ffi::c_char,
}
unsafe extern "C" {
    pub fn gate_open(
        slots: ::core::ffi::c_uint,
        control: *const ::core::ffi::c_char,
        status: *const ::core::ffi::c_char,
        reads: *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn gate_ask(
        slot: ::core::ffi::c_uint,
        part: *const gate_text,
        parts: ::core::ffi::c_uint,
        text: *mut *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn gate_next(out: *mut gate_next) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn gate_done(
        slot: ::core::ffi::c_uint,
        report: *const ::core::ffi::c_char,
        len: ::core::ffi::c_uint,
        text: *mut *const ::core::ffi::c_char,
    ) -> ::core::ffi::c_int;
}
unsafe extern "C" {
    pub fn gate_timeout_ms() -> ::core::ffi::c_long;
}
unsafe extern "C" {
    pub fn gate_held() -> ::core::ffi::c_uint;
}
unsafe extern "C" {
    pub fn gate_drop_held();
}
