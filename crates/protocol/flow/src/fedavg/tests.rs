mod door;
mod properties;
mod scenarios;
