//! The commands of the program, a file or a folder for each: its options, and what it prints.

pub(crate) mod calibrate;
pub(crate) mod evaluate;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod pictures;
pub(crate) mod report;
pub(crate) mod shell;
