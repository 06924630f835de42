use super::*;

/// A writer whose bytes can be looked at, and that can be held up.
#[derive(Clone, Default)]
pub(crate) struct Tape(Arc<Reel>);

#[derive(Default)]
struct Reel {
    state: Mutex<(Vec<u8>, bool)>,
    freed: Condvar,
}

impl Tape {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.state.lock().unwrap().0.clone()).unwrap()
    }

    fn hold(&self, held: bool) {
        self.0.state.lock().unwrap().1 = held;
        self.0.freed.notify_all();
    }

    pub(crate) fn console(&self, style: ConsoleStyle, terminal: Option<(usize, usize)>) -> Console {
        Console::new(ConsoleOptions {
            style,
            target: Target::Writer {
                writer: Box::new(self.clone()),
                terminal,
            },
            color: true,
        })
    }
}

impl Write for Tape {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let state = self.0.state.lock().unwrap();
        let mut state = self.0.freed.wait_while(state, |state| state.1).unwrap();
        state.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a terminal of that width shows after it was sent `bytes`: enough of
/// one for what the screen sends.
pub(crate) fn shown(bytes: &str, columns: usize) -> Vec<String> {
    let mut rows: Vec<Vec<char>> = vec![vec![]];
    let (mut row, mut column) = (0usize, 0usize);
    let mut chars = bytes.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => (row, column) = (row + 1, 0),
            '\r' => column = 0,
            '\x1b' => {
                assert_eq!(chars.next(), Some('['));
                let mut digits = String::new();
                while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                    digits.push(digit);
                }
                match chars.next() {
                    Some('A') => row -= digits.parse::<usize>().unwrap(),
                    Some('J') => {
                        rows.truncate(row + 1);
                        rows[row].truncate(column);
                    }
                    Some('m') => {}
                    other => panic!("unexpected escape {digits}{other:?}"),
                }
            }
            c => {
                if column == columns {
                    (row, column) = (row + 1, 0);
                }
                while rows.len() <= row {
                    rows.push(vec![]);
                }
                rows[row].resize(column, ' ');
                rows[row].push(c);
                column += 1;
            }
        }
        while rows.len() <= row {
            rows.push(vec![]);
        }
    }
    let mut rows: Vec<String> = rows.into_iter().map(String::from_iter).collect();
    while rows.last().is_some_and(String::is_empty) {
        rows.pop();
    }
    rows
}

const SOON: Duration = Duration::from_secs(10);

struct Lines(Mutex<Vec<String>>);

impl Block for Lines {
    fn lines(&self, _columns: usize, _rows: usize) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn wait_for(what: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !what() {
        assert!(Instant::now() < end, "nothing happened for {SOON:?}");
        std::thread::yield_now();
    }
}

#[test]
fn lines_scroll_above_the_block() {
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Auto, Some((20, 24)));
    assert!(console.live() && console.colored());
    let block = Arc::new(Lines(Mutex::new(vec!["job".into(), "site one".into()])));
    console.show(block.clone());
    console.line("first".into());
    assert!(console.flush(SOON));
    assert_eq!(shown(&tape.text(), 20), ["first", "job", "site one"]);
    *block.0.lock().unwrap() = vec!["job, later".into()];
    console.touch();
    wait_for(|| shown(&tape.text(), 20) == ["first", "job, later"]);
    console.line("second".into());
    assert!(console.flush(SOON));
    assert_eq!(shown(&tape.text(), 20), ["first", "second", "job, later"]);
    // A line of the block never takes more than one row.
    *block.0.lock().unwrap() = vec!["a line that is longer than the screen".into()];
    console.touch();
    wait_for(|| shown(&tape.text(), 20).len() == 3 && tape.text().contains('…'));
    assert_eq!(shown(&tape.text(), 20)[2], "a line that is lon…");
    console.leave();
    console.line("after the end".into());
    drop(console);
    assert_eq!(
        shown(&tape.text(), 20)
            .iter()
            .filter(|row| row.starts_with("a line"))
            .count(),
        1
    );
}

#[test]
fn the_block_is_drawn_at_most_ten_times_a_second() {
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Auto, Some((20, 24)));
    console.show(Arc::new(Lines(Mutex::new(vec!["job".into()]))));
    let start = Instant::now();
    let mut touches = 0u64;
    while start.elapsed() < Duration::from_millis(450) {
        console.touch();
        touches += 1;
    }
    let elapsed = start.elapsed();
    drop(console);
    let frames = tape.text().matches("job").count();
    assert!(touches > 100, "the test itself was too slow");
    // One at the start, one per 100 ms, one to leave it.
    let most = 3 + usize::try_from(elapsed.as_millis() / 100).unwrap();
    assert!(
        (2..=most).contains(&frames),
        "{frames} frames in {elapsed:?}"
    );
}

#[test]
fn elsewhere_there_are_plain_lines_only() {
    for (style, terminal) in [
        (ConsoleStyle::Auto, None),
        (ConsoleStyle::Plain, None),
        (ConsoleStyle::Plain, Some((80, 24))),
    ] {
        let tape = Tape::default();
        let console = tape.console(style, terminal);
        assert!(!console.live());
        console.show(Arc::new(Lines(Mutex::new(vec!["block".into()]))));
        console.line("one".into());
        console.touch();
        console.line("two".into());
        drop(console);
        assert_eq!(tape.text(), "one\ntwo\n");
    }
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Off, Some((80, 24)));
    console.line("one".into());
    assert!(console.flush(Duration::ZERO));
    drop(console);
    assert_eq!(tape.text(), "");
}

#[test]
fn a_stopped_terminal_holds_nobody_up() {
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Plain, None);
    tape.hold(true);
    let start = Instant::now();
    let line = "x".repeat(1000);
    for _ in 0..3 * limits::CONSOLE_BACKLOG / 1000 {
        console.line(line.clone());
    }
    assert!(start.elapsed() < Duration::from_secs(5), "a line waited");
    assert!(!console.flush(Duration::from_millis(1)));
    tape.hold(false);
    assert!(console.flush(SOON));
    let text = tape.text();
    assert!(text.len() < 2 * limits::CONSOLE_BACKLOG + 10_000);
    assert!(text.contains("lines were not shown here"));
    // And afterwards it goes on as before.
    console.line("still here".into());
    assert!(console.flush(SOON));
    assert!(tape.text().ends_with("still here\n"));
}

#[test]
fn what_is_queued_is_written_when_the_console_goes() {
    let tape = Tape::default();
    let console = tape.console(ConsoleStyle::Plain, None);
    let other = console.clone();
    for number in 0..1000 {
        console.line(number.to_string());
    }
    drop(console);
    other.line("last".into());
    drop(other);
    assert_eq!(tape.text().lines().count(), 1001);
    assert!(tape.text().ends_with("999\nlast\n"));
}

#[test]
fn a_terminal_that_was_made_narrower_is_cleared_all_the_same() {
    let (mut screen, _) = Screen::new(Target::Writer {
        writer: Box::new(Tape::default()),
        terminal: Some((40, 24)),
    });
    let block = Lines(Mutex::new(vec!["x".repeat(39), "y".repeat(5)]));
    screen.draw(&[], Some(&block), false);
    // 39 columns are two rows of 20, and 5 are one.
    assert_eq!(screen.erase(20), "\x1b[3A\r\x1b[J");
}
