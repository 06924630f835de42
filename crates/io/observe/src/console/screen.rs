//! The bytes that a terminal is sent.

use std::io::{self, IsTerminal, Write};

use super::{Block, Target};
use crate::text;

/// Columns and rows where a terminal does not tell.
const USUAL_SIZE: (usize, usize) = (80, 24);

pub(super) struct Screen {
    writer: Box<dyn Write + Send>,
    size: Size,
    /// Widths of the block's lines as they stand on the screen.
    drawn: Vec<usize>,
}

enum Size {
    Fixed(usize, usize),
    OfStderr,
}

impl Screen {
    /// The screen, and whether it is a terminal.
    pub(super) fn new(target: Target) -> (Self, bool) {
        let (writer, size, terminal): (Box<dyn Write + Send>, _, _) = match target {
            Target::Stderr => {
                let stderr = io::stderr();
                let terminal = stderr.is_terminal();
                (Box::new(stderr), Size::OfStderr, terminal)
            }
            Target::Writer { writer, terminal } => {
                let (columns, rows) = terminal.unwrap_or(USUAL_SIZE);
                (writer, Size::Fixed(columns, rows), terminal.is_some())
            }
        };
        let screen = Self {
            writer,
            size,
            drawn: Vec::new(),
        };
        (screen, terminal)
    }

    /// Writes `lines` where the block was, and the block anew below them. A
    /// block that is left is never drawn over again.
    pub(super) fn draw(&mut self, lines: &[String], block: Option<&dyn Block>, leave: bool) {
        let (columns, rows) = self.size();
        let mut frame = self.erase(columns);
        for line in lines {
            frame.push_str(line);
            frame.push('\n');
        }
        if let Some(block) = block {
            for line in block.lines(columns, rows) {
                // One column is left free: some terminals wrap a full line.
                let line = text::fitted(&line, columns.saturating_sub(1));
                self.drawn.push(text::columns(&line));
                frame.push_str(&line);
                frame.push('\n');
            }
        }
        if leave {
            self.drawn.clear();
        }
        // A terminal that is gone is no reason to fail a job.
        let _ = self.writer.write_all(frame.as_bytes());
        let _ = self.writer.flush();
    }

    /// Moves to where the block began and clears from there. Lines that the
    /// terminal wrapped since, because it was made narrower, count as several.
    pub(super) fn erase(&mut self, columns: usize) -> String {
        let rows: usize = self
            .drawn
            .drain(..)
            .map(|width| width.max(1).div_ceil(columns.max(1)))
            .sum();
        match rows {
            0 => String::new(),
            rows => format!("\x1b[{rows}A\r\x1b[J"),
        }
    }

    fn size(&self) -> (usize, usize) {
        match self.size {
            Size::Fixed(columns, rows) => (columns, rows),
            Size::OfStderr => rustix::termios::tcgetwinsize(io::stderr())
                .ok()
                .map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)))
                .filter(|&(columns, rows)| columns > 0 && rows > 0)
                .unwrap_or(USUAL_SIZE),
        }
    }
}
