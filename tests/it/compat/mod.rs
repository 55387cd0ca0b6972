//! The older systems' clients: every call of their documents, as the documents have it.

mod aiezzy;
mod bad_input;
mod clisonix;
mod noteria;
mod promptenchanter;
mod switches;
mod together;
mod transcript;
mod usermgmt;
