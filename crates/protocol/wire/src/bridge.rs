//! Between agent and trainer.
