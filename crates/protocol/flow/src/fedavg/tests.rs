mod compat;
mod door;
mod properties;
mod scenarios;
mod settings;
