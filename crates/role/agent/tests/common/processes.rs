//! The processes that tests of agents and simulations need: a supervisor
//! (`supervise`), and a trainer (`train <script>`) that does line by line what its
//! script says.
//!
//! | line | what it does |
//! |---|---|
//! | `connect` | calls the agent, as `flare.init()` does |
//! | `next` | asks for a task |
//! | `send X` | answers it: the model plus X, or X where there is none |
//! | `send-key X` | answers it with X as the metric `accuracy` |
//! | `stale` | answers a task that nobody gave |
//! | `serve X` | `next` and `send X` until there is no more |
//! | `metrics N L M` | answers with N metrics whose names have L bytes, and one of M |
//! | `inline N` | answers with N bytes of model in the message, and does not wait |
//! | `type T` | answers with params of type T |
//! | `state F` | answers and keeps what the file of the last state had and a `+` |
//! | `failed S` | reports that the script raised S |
//! | `bye`, `drop` | leaves with a word, or without |
//! | `garbage` | sends what is no message |
//! | `say S`, `err S` | writes a line |
//! | `chatter N` | logs N lines |
//! | `track S` | sends a tracking event |
//! | `touch F`, `wait F` | makes a file, waits for one |
//! | `leave F` | leaves a file in the outbox |
//! | `lines F` | appends its process id to a file |
//! | `exit N`, `signal S`, `hang` | ends so, or not at all |
//! | `in N …`, `at S …` | does the rest of the line in round N, at site S only |

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program of the tests"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use firesteel_bridge::{
    BridgeClient, Delivery, Dial, Interrupted, Job, Outcome, Outgoing, ResultModel,
};
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader};
use firesteel_wire::bridge::{self as say, FromAgent, FromTrainer, from_agent, from_trainer};

/// A trainer that nobody ends does so by itself: no test is that long.
const LIFE: Duration = Duration::from_secs(60);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("supervise") => firesteel_launch::supervise().unwrap(),
        Some("train") => Trainer::default().run(&std::fs::read_to_string(&args[2]).unwrap()),
        other => panic!("{other:?} is nothing to do"),
    }
}

#[derive(Default)]
struct Trainer {
    client: Option<BridgeClient>,
    welcome: serde_json::Value,
    task: Option<Job>,
    files: u32,
    raw: Option<UnixStream>,
}

fn never() -> impl FnMut() -> Result<(), Interrupted> {
    || Ok(())
}

fn socket() -> PathBuf {
    std::env::var_os("FIRESTEEL_BRIDGE").unwrap().into()
}

fn token() -> String {
    std::env::var("FIRESTEEL_TOKEN").unwrap()
}

impl Trainer {
    fn run(mut self, script: &str) {
        script.lines().for_each(|line| self.obey(line.trim()));
    }

    fn obey(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "" | "#" => {}
            "connect" => self.connect(),
            "next" => drop(self.next()),
            "send" => self.send(rest.parse().unwrap(), BTreeMap::new()),
            "send-key" => {
                let accuracy = rest.parse().unwrap();
                self.send(accuracy as f32, [("accuracy".to_owned(), accuracy)].into());
            }
            "serve" => self.serve(rest.parse().unwrap()),
            "stale" => self.stale(),
            "metrics" => {
                let numbers: Vec<usize> =
                    rest.split(' ').map(|word| word.parse().unwrap()).collect();
                let name = |n: usize, length: usize| format!("{n:0length$}");
                let mut metrics: BTreeMap<_, _> = (1..=numbers[0])
                    .map(|n| (name(n, numbers[1]), 1.0))
                    .collect();
                metrics.insert(name(0, numbers[2]), 1.0);
                self.send(1.0, metrics);
            }
            "inline" => self.inline(rest.parse().unwrap()),
            "type" => self.deliver(
                rest,
                ResultModel::Inline(model(&[1.0]).into()),
                BTreeMap::new(),
                "",
            ),
            "state" => self.state(rest),
            "failed" => {
                let failed = say::Failed {
                    code: "raised".into(),
                    phase: "train".into(),
                    message: rest.into(),
                    traceback: format!("Traceback (most recent call last):\n{rest}"),
                };
                self.client().failed(failed, &mut never()).unwrap();
            }
            "bye" => self.client.take().unwrap().close(&mut never()),
            "drop" => self.client = None,
            "garbage" => self.garbage(),
            "say" => println!("{rest}"),
            "err" => eprintln!("{}", rest.replace("\\n", "\n")),
            "chatter" => (0..rest.parse().unwrap()).for_each(|n: u32| {
                self.client().log(
                    20,
                    "custom.test",
                    &format!("line {n} of a great many {}", "x".repeat(200)),
                );
            }),
            "track" => self.client().metric(rest),
            "touch" => std::fs::write(rest, "").unwrap(),
            "wait" => wait_for(Path::new(rest)),
            "leave" => std::fs::write(self.outbox().join(rest), vec![0; 100_000]).unwrap(),
            "lines" => {
                let mut file = std::fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(rest)
                    .unwrap();
                // In one piece: others write there, too.
                file.write_all(format!("{}\n", std::process::id()).as_bytes())
                    .unwrap();
            }
            "exit" => std::process::exit(rest.parse().unwrap()),
            "signal" => {
                let me = std::process::id().to_string();
                // The first of some is only noted by the runtime.
                for _ in 0..3 {
                    std::process::Command::new("kill")
                        .args([&format!("-{rest}"), &me])
                        .status()
                        .unwrap();
                }
            }
            "hang" => std::thread::sleep(LIFE),
            "in" | "at" => {
                let (which, then) = rest.split_once(' ').unwrap();
                let here = match word {
                    "in" => self
                        .task
                        .as_ref()
                        .is_some_and(|task| task.key.round == which.parse::<u32>().unwrap()),
                    _ => self.welcome["site"] == which,
                };
                if here {
                    self.obey(then);
                }
            }
            other => panic!("{other:?} is nothing to do"),
        }
    }

    fn client(&self) -> &BridgeClient {
        self.client.as_ref().unwrap()
    }

    fn outbox(&self) -> PathBuf {
        self.welcome["outbox"].as_str().unwrap().into()
    }

    fn connect(&mut self) {
        let dial = Dial {
            socket: &socket(),
            token: &token(),
            rank: 0,
            version: "test",
            connect: Duration::from_secs(10),
        };
        let client = BridgeClient::connect(dial, &mut never()).unwrap();
        self.welcome = serde_json::from_str(client.welcome()).unwrap();
        self.client = Some(client);
    }

    fn next(&mut self) -> bool {
        self.task = match self.client().next(None, &mut never()).unwrap() {
            Outcome::Task(task) => Some(task),
            Outcome::Ended(_) => None,
        };
        self.task.is_some()
    }

    fn serve(&mut self, add: f32) {
        while self.next() {
            self.send(add, BTreeMap::new());
        }
    }

    fn send(&mut self, add: f32, metrics: BTreeMap<String, f64>) {
        let task = self.task.as_ref().expect("a task was given");
        let values = match &task.model {
            Some(model) => values_in(model.as_slice())
                .into_iter()
                .map(|value| value * 1.1 + add)
                .collect(),
            None => vec![add],
        };
        let bytes = model(&values);
        let model = if bytes.len() <= 64 * 1024 {
            ResultModel::Inline(bytes.into())
        } else {
            self.files += 1;
            let name = format!("{}-{}.safetensors", std::process::id(), self.files);
            std::fs::write(self.outbox().join(&name), bytes).unwrap();
            ResultModel::File(name)
        };
        self.deliver("FULL", model, metrics, "");
    }

    fn deliver(
        &mut self,
        params_type: &str,
        model: ResultModel,
        metrics: BTreeMap<String, f64>,
        state: &str,
    ) {
        let key = self.task.take().expect("a task was given").key;
        let result = Outgoing {
            params_type: params_type.into(),
            model,
            metrics,
            meta: r#"{"NUM_STEPS_CURRENT_ROUND": 2}"#.into(),
            state_file: state.into(),
            partial: false,
        };
        match self.client().send_result(&key, result, &mut never()) {
            Ok(Delivery::Taken) => println!("taken"),
            Ok(Delivery::Ended(why)) => println!("ended: {why}"),
            Err(error) => println!("refused: {error}"),
        }
    }

    fn stale(&mut self) {
        let mut key = self.task.as_ref().expect("a task was given").key.clone();
        key.attempt += 7;
        let name = "stale.safetensors";
        std::fs::write(self.outbox().join(name), model(&[9.0; 20_000])).unwrap();
        let result = Outgoing {
            params_type: "FULL".into(),
            model: ResultModel::File(name.into()),
            metrics: BTreeMap::new(),
            meta: String::new(),
            state_file: String::new(),
            partial: false,
        };
        assert_eq!(
            self.client()
                .send_result(&key, result, &mut never())
                .unwrap(),
            Delivery::Taken
        );
    }

    fn state(&mut self, file: &str) {
        let before = self.welcome["state_file"]
            .as_str()
            .map(|path| std::fs::read_to_string(path).unwrap());
        let now = format!("{}+", before.unwrap_or_default());
        std::fs::write(file, &now).unwrap();
        std::fs::write(self.outbox().join("state"), now).unwrap();
        self.deliver(
            "FULL",
            ResultModel::Inline(model(&[1.0]).into()),
            BTreeMap::new(),
            "state",
        );
    }

    /// Speaks the protocol by hand: the client would not do that.
    fn by_hand(&mut self, body: from_trainer::Body) {
        let stream = self
            .raw
            .get_or_insert_with(|| UnixStream::connect(socket()).unwrap());
        let frame = firesteel_wire::frame::encode(&FromTrainer { body: Some(body) }).unwrap();
        stream.write_all(&frame).unwrap();
    }

    fn greet_by_hand(&mut self) {
        self.by_hand(from_trainer::Body::Hello(say::Hello {
            protocol_min: 1,
            protocol_max: 1,
            token: token(),
            ..Default::default()
        }));
        self.by_hand(from_trainer::Body::Next(say::Next {}));
    }

    fn inline(&mut self, bytes: usize) {
        self.greet_by_hand();
        let mut heard = BytesMut::new();
        let key = loop {
            match firesteel_wire::frame::decode::<FromAgent>(&mut heard, "FromAgent").unwrap() {
                Some(FromAgent {
                    body: Some(from_agent::Body::Task(task)),
                }) => break task.key,
                Some(_) => continue,
                None => {}
            }
            let mut some = [0; 4096];
            let count = self.raw.as_mut().unwrap().read(&mut some).unwrap();
            assert!(count > 0, "the agent hung up");
            heard.extend_from_slice(&some[..count]);
        };
        let values = bytes / 4;
        self.by_hand(from_trainer::Body::Result(say::TaskResult {
            key,
            params_type: "FULL".into(),
            model: Some(say::task_result::Model::Inline(
                model(&vec![1.0; values]).into(),
            )),
            ..Default::default()
        }));
    }

    fn garbage(&mut self) {
        self.greet_by_hand();
        let stream = self.raw.as_mut().unwrap();
        stream
            .write_all(&[5, 0, 0, 0, 255, 255, 255, 255, 255])
            .unwrap();
        std::thread::sleep(LIFE);
    }
}

fn wait_for(path: &Path) {
    let tries = LIFE.as_millis() / 2;
    for _ in 0..tries {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("`{}` did not come", path.display());
}

fn model(values: &[f32]) -> Vec<u8> {
    let mut builder = HeaderBuilder::new();
    builder.tensor("w", DType::F32, &[values.len() as u64]);
    let (mut bytes, _) = builder.encode().unwrap();
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

fn values_in(bytes: &[u8]) -> Vec<f32> {
    let header = ModelHeader::parse(bytes, bytes.len() as u64).unwrap();
    let data = header.bytes_of(header.get("w").unwrap(), bytes).unwrap();
    data.chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect()
}
