//! A trainer's output: bytes in, lines out, the last ones kept.

use std::collections::VecDeque;

use firesteel_base::limits;
use firesteel_wire::supervise::Line;

/// Cuts one stream into lines.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    partial: Vec<u8>,
    /// Bytes of the current line over the limit, which were not kept.
    cut: usize,
    /// A carriage return was the last byte: what follows overwrites the line.
    returned: bool,
}

impl Cutter {
    /// Takes bytes; gives the lines they complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (piece, end) = rest.split_at(at);
            self.keep(piece);
            match end.split_first() {
                Some((b'\n', after)) => {
                    lines.push(self.take());
                    rest = after;
                }
                Some((_, after)) => {
                    // A progress bar draws itself again and again on one line;
                    // as on a terminal, its last state stays.
                    self.returned = true;
                    rest = after;
                }
                None => break,
            }
        }
        self.keep(rest);
        lines
    }

    /// The unfinished last line, if there is one.
    pub(super) fn finish(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.take())
    }

    fn keep(&mut self, piece: &[u8]) {
        if piece.is_empty() {
            return;
        }
        if std::mem::take(&mut self.returned) {
            self.partial.clear();
            self.cut = 0;
        }
        let room = limits::LOG_LINE
            .saturating_sub(self.partial.len())
            .min(piece.len());
        let (kept, cut) = piece.split_at(room);
        self.partial.extend_from_slice(kept);
        self.cut += cut.len();
    }

    fn take(&mut self) -> String {
        self.returned = false;
        let mut text = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial.clear();
        // A long line was the exception; most trainers never need this much.
        self.partial.shrink_to(1024);
        let cut = std::mem::take(&mut self.cut);
        if cut > 0 {
            text.push_str(&format!("… ({cut} bytes cut)"));
        }
        text
    }
}

/// The last lines of a trainer.
#[derive(Debug, Default)]
pub(super) struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
}

impl Ring {
    pub(super) fn push(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > limits::LOG_TAIL_LINES || self.bytes > limits::LOG_TAIL_BYTES {
            let Some(oldest) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= oldest.text.len();
        }
    }

    pub(super) fn tail(&self) -> Vec<Line> {
        self.lines.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[&[u8]], expect: &[&str]) {
        let mut cutter = Cutter::default();
        let mut lines: Vec<String> = pieces.iter().flat_map(|piece| cutter.push(piece)).collect();
        lines.extend(cutter.finish());
        assert_eq!(lines, expect);
    }

    #[test]
    fn lines_come_out_however_they_came_in() {
        check(
            &[b"one\ntwo\n", b"thr", b"ee\n\nlast"],
            &["one", "two", "three", "", "last"],
        );
        check(&[b"windows\r\nline\r", b"\nx"], &["windows", "line", "x"]);
        check(&[b"10%\r", b"20%\r", b"100%\n"], &["100%"]);
        check(&[b"10%\r20%\r"], &["20%"]);
        check(&[b"bad \xff byte\n"], &["bad \u{fffd} byte"]);
        check(&[], &[]);
    }

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        let long = vec![b'x'; limits::LOG_LINE + 7];
        let mut cutter = Cutter::default();
        assert!(cutter.push(&long).is_empty());
        let lines = cutter.push(b"yz\nnext\n");
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].ends_with("x… (9 bytes cut)"),
            "{}",
            &lines[0][limits::LOG_LINE..]
        );
        assert_eq!(lines[1], "next");
        assert!(cutter.partial.capacity() <= 1024);
    }

    #[test]
    fn the_ring_keeps_the_last_lines_within_both_limits() {
        let mut ring = Ring::default();
        for at in 0..1_000 {
            ring.push(Line {
                stderr: false,
                text: at.to_string(),
            });
        }
        let tail = ring.tail();
        assert_eq!(
            (tail.len(), tail[0].text.as_str()),
            (limits::LOG_TAIL_LINES, "800")
        );
        for _ in 0..100 {
            ring.push(Line {
                stderr: true,
                text: "x".repeat(limits::LOG_LINE),
            });
        }
        assert_eq!(ring.tail().len(), limits::LOG_TAIL_BYTES / limits::LOG_LINE);
    }
}
