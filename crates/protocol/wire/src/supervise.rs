//! Between agent and supervisor.
