//! Every limit of the product: its unit, its value, and why it is that.

/// Bytes in a site name, job id or other name (DNS labels stop there too).
pub const NAME_LENGTH: usize = 63;

/// Bytes up to which a model or update travels inside a message and never
/// touches a disk. Above it, it is a file.
pub const INLINE_OBJECT: usize = 64 * 1024;

/// Bytes of one frame on a control stream or a bridge: an inline object and
/// generous room for the rest (metrics, meta, a traceback). Worst-case memory is
/// this per stream and direction.
pub const FRAME: usize = 1024 * 1024;

/// Bytes of a model file's header. The safetensors format itself stops there.
pub const MODEL_HEADER: usize = 100_000_000;

/// Dimensions of a tensor; NumPy stops at 64.
pub const TENSOR_RANK: usize = 64;

/// Nesting of a params tree. Deep enough for any network seen in the wild,
/// shallow enough to recurse over.
pub const TREE_DEPTH: usize = 64;

/// Leaves of a params tree, tensors included.
pub const TREE_LEAVES: usize = 4_000_000;

/// Bytes of strings, bytes and keys in one params tree, tensors excluded.
pub const TREE_BYTES: usize = 16 * 1024 * 1024;

/// Metrics in one update.
pub const METRICS: usize = 4_096;

/// Bytes of the meta dictionary of one update, as JSON.
pub const META_BYTES: usize = 256 * 1024;

/// Notes on a job, and resources of a site's own naming: both are shown in lists.
pub const META_NOTES: usize = 64;

/// Bytes of one note on a job: all of them together fit the spec's frame.
pub const META_NOTE: usize = 1024;

/// Sites of one simulated job. Each costs at most 100 KB.
pub const SIM_SITES: usize = 100_000;

/// Lines of a trainer's output that are kept for a failure report.
pub const LOG_TAIL_LINES: usize = 200;

/// Bytes of those lines together: they travel in one frame. The supervisor holds
/// at most this much per running trainer.
pub const LOG_TAIL_BYTES: usize = 256 * 1024;

/// Bytes of a live update that wait between the pull and the fold, which holds
/// windows of its own; per update. Look-ahead beyond one batch of a transfer
/// gains nothing.
pub const LIVE_AHEAD: usize = 1024 * 1024;

/// Bytes of one line of a trainer's output; the rest of a longer one is cut
/// and said to be.
pub const LOG_LINE: usize = 16 * 1024;

/// Bytes of a traceback in a failure report; the middle of a longer one is cut.
pub const TRACEBACK_BYTES: usize = 64 * 1024;

/// Bytes of a job spec: it travels in one frame, with the job's id and seed.
pub const JOB_SPEC: usize = FRAME - 4096;

/// Bytes at which a log file is rotated, and how many old ones are kept
/// (FLARE's 20 MiB × 10).
pub const LOG_FILE: u64 = 20 * 1024 * 1024;
/// Rotated log files kept beside the current one.
pub const LOG_FILES_KEPT: usize = 10;

/// Bytes of log lines that wait for a terminal which takes none (Ctrl-S, a full
/// pipe). Beyond that they go to the files only.
pub const CONSOLE_BACKLOG: usize = 1024 * 1024;

/// Bytes of a file being received after which what has arrived is written down
/// by itself. So much at most is pulled again after the receiver was killed;
/// each time costs one write of a page.
pub const PART_SAVE: u64 = 32 * 1024 * 1024;

/// Bytes that the receiver of a file may leave beside it for itself after a
/// restart: a digest or two.
pub const PART_NOTE: usize = 1024;

/// Separate stretches of a file being received that are written down; of more,
/// the longest. With windows that arrive out of order there are a handful.
pub const PART_RANGES: usize = 128;

/// Files of models that wait to be written again, on disk and in the page
/// cache. Two, because the file that the round before last left is free while
/// the last round's is still mapped by a slow trainer.
pub const SPARE_FILES: usize = 2;

/// The same while updates are received into a spool: one round's updates go
/// into the last one's files. Their bytes are within the spool's budget; the
/// number bounds open descriptors.
pub const SPARE_SPOOL_FILES: usize = 64;

/// Bytes on disk beside models: logs, metrics and event files of a usual run.
/// Logs may grow to `LOG_FILE × (LOG_FILES_KEPT + 1)` each, but only in jobs
/// that run for days, and what they lose when the disk fills is log lines,
/// never a round.
pub const BESIDE_MODELS: u64 = 16 * 1024 * 1024;

/// Elements of a model that one thread folds at a time: small enough to share
/// the work among threads, large enough that handing it out costs nothing. A
/// thread holds up to 8 bytes for each where an update lacks a tensor.
pub const FOLD_PIECE: usize = 128 * 1024;

/// Bytes of all updates together that are folded straight from their sites,
/// held at a time. Each gets an equal share, at most `LIVE_WINDOW`.
pub const LIVE_FOLD: usize = 64 * 1024 * 1024;

/// Bytes of one such update at a time: more gives no speed once a window costs
/// more than waking the threads that fold it.
pub const LIVE_WINDOW: usize = 4 * 1024 * 1024;

/// Bytes of one such update at the least, so that a window is worth a read.
/// Beyond `LIVE_FOLD / LIVE_WINDOW_LEAST` (16,384) of them, memory grows by so
/// much each.
pub const LIVE_WINDOW_LEAST: usize = 4 * 1024;

/// Bytes of a file in one data frame of a transfer: large enough that 32 bytes
/// of head and the calls around it cost nothing, small enough that a heartbeat
/// on the same connection waits for one of them at most.
pub const TRANSFER_PAYLOAD: usize = 256 * 1024;

/// Bytes that a transfer reads, hashes or writes at a time. Either end holds two
/// of them per transfer: one with the disk, one with the connection.
pub const TRANSFER_BATCH: usize = 1024 * 1024;

/// Bytes of a tensor that have a digest of their own: what has to be pulled
/// again when a byte of them is wrong, and read again after a restart. A power
/// of two, so that the digest of the tensor follows from theirs.
pub const TRANSFER_BLOCK: u64 = 4 * 1024 * 1024;

/// Bytes that one transfer may have asked for and not got. At 100 ms it is
/// 2.5 Gbit/s; what has not come takes memory only where a connection buffers it.
pub const TRANSFER_WINDOW: u64 = 32 * 1024 * 1024;

/// Bytes that all transfers of a role towards it may have asked for and not
/// got, or have in hand. Each peer gets an equal share, and each transfer an
/// equal share of its peer's, but never less than one frame.
pub const TRANSFER_BUDGET: u64 = 64 * 1024 * 1024;

/// Ranges that one transfer may have asked for and not got. The sender holds 24
/// bytes for each.
pub const TRANSFER_RANGES: usize = 1024;

/// Bytes of a manifest: six million tensors, or a file of 30 TiB. It also may
/// not be longer than the file it is of, and 64 KiB. A receiver holds it,
/// about twice, while it pulls the file.
pub const MANIFEST: u64 = 256 * 1024 * 1024;

/// Bytes of the sentence with which a sender refuses.
pub const REFUSAL: usize = 1024;

/// Bytes that nobody asked for, or that had come already, after which a
/// receiver hangs up.
pub const TRANSFER_SURPLUS: u64 = 64 * 1024 * 1024;

/// Bytes from which a part that is there already is copied, not pulled: below,
/// the two calls cost more than the bytes.
pub const TRANSFER_SKIP: u64 = 1024;

/// Bytes of a PEM file: a chain of certificates, a key, a few authorities.
pub const PEM_FILE: usize = 256 * 1024;

/// Connections that the kernel holds until they are accepted.
pub const BACKLOG: i32 = 1024;

/// Connections whose handshake is under way. Each costs about 100 KB, and a
/// silent one is gone after the duration `connect`.
pub const HANDSHAKES: usize = 256;

/// Sessions that have been made and not been taken by the role.
pub const WAITING_SESSIONS: usize = 16;

/// Connections of HTTP at a time: browsers, clients of the REST interface, and
/// sites whose session inside is not made yet. Each costs about 100 KB.
pub const WEB_CONNECTIONS: usize = 512;

/// Requests that one HTTP/2 connection may have under way at once.
pub const WEB_STREAMS: u32 = 64;

/// Bytes that an HTTP/2 peer may send before we have read any: who has shown no
/// certificate must not fill our memory. At 100 ms it is 160 Mbit/s.
pub const WEB_WINDOW: u32 = 2 * 1024 * 1024;

/// Bytes of a request's headers: cookies and tokens of any browser fit.
pub const WEB_HEADERS: u32 = 16 * 1024;

/// Bytes of the header of the PROXY protocol: 216 of addresses, and what load
/// balancers add.
pub const PROXY_HEADER: usize = 2048;

/// Bytes of a message that carries a piece of a session's connection over gRPC or
/// WebSocket: a few whole TLS records. The stream holds two or three of them.
pub const LINK_MESSAGE: usize = 64 * 1024;

/// Bytes of such a message that we take from others.
pub const LINK_MESSAGE_TAKEN: usize = 1024 * 1024;

/// Bytes of a hello, welcome or link message after the TLS handshake.
pub const SESSION_MESSAGE: usize = 1024;

/// Bytes of a control connection that may lie in the kernel unsent. Little, so
/// that where everything shares one connection, control overtakes the rest.
pub const UNSENT_CONTROL: u32 = 16 * 1024;

/// The same of a bulk connection: enough that a fast link never waits for us.
pub const UNSENT_BULK: u32 = 256 * 1024;

/// Bulk connections of one session.
pub const BULK_CONNECTIONS: u8 = 16;

/// Streams of one connection, those of both ends together.
pub const STREAMS: usize = 256;

/// Streams that the peer has opened and we have not taken.
pub const WAITING_STREAMS: usize = 64;

/// Scopes of one session: jobs that one site has at a time. Each costs about 3 KB.
pub const SCOPES: usize = 1024;

/// Bytes of a stream's name, the path within an offered folder included: long
/// enough for any path that a person types, short enough for an error message.
pub const STREAM_NAME: usize = 1024;

/// Standing offers of one site. Each holds one open descriptor of its agent.
pub const SITE_OFFERS: usize = 256;

/// Standing offers of one process: those of all sites of a simulation.
pub const OFFERS: usize = 4096;

/// Sites that one offer may name.
pub const OFFER_SITES: usize = 1024;

/// Stream connections of one trainer at a time: its threads and ranks that fetch
/// at once. Each holds one frame.
pub const STREAM_CONNECTIONS: usize = 32;

/// Fetches between sites that one peer may have under way at once. Each holds two
/// [`STREAM_RELAY`] at the server, or windows of the transfer budget at a site.
pub const STREAM_FETCHES: usize = 32;

/// Bytes that are on their way through the server per direction of a fetch
/// between sites.
pub const STREAM_RELAY: usize = 64 * 1024;

/// Bytes of a message of a fetch between sites: names, ids and sentences.
pub const STREAM_MESSAGE: usize = 16 * 1024;

/// Fetches whose file a site keeps open for those who lost the connection. Each
/// holds one descriptor.
pub const STREAM_GRANTS: usize = 256;

/// Elements of a tensor that are encoded or decoded at a time. Beside them there
/// are their f32 values, their codes and their bytes: at most 16 bytes for each,
/// so 1 MiB per model that is being read.
pub const CODEC_WINDOW: usize = 64 * 1024;

/// Bytes of a tensor that are compressed by themselves, so that a reader may
/// start at any of them. Larger frames would be 1 % smaller.
pub const CODEC_FRAME: usize = 256 * 1024;

/// Filters that encode a model, one after the other: three are useful, and each
/// may double the work of who reads it.
pub const CODEC_LAYERS: usize = 8;

/// Bytes that a peer may send on one stream before we have read any: 100 ms at
/// 1.3 Gbit/s. A stream that nobody reads holds at most this much.
pub const STREAM_WINDOW: u32 = 16 * 1024 * 1024;

/// The same of all streams of a connection together.
pub const CONNECTION_WINDOW: u32 = 256 * 1024 * 1024;

/// Bytes of a frame that we take from a peer on a connection.
pub const SESSION_FRAME: u32 = 256 * 1024;

/// Bytes of the frames that we send on bulk connections, heads included: whole
/// TLS records of 16 KiB.
pub const BULK_FRAME: usize = 256 * 1024;

/// Bytes that a bulk connection has taken from its streams and not written.
pub const BULK_UNWRITTEN: usize = 512 * 1024;

/// The two of a control connection. Where everything shares it, a heartbeat
/// waits for at most this much of something else, and for what the kernel has.
pub const CONTROL_FRAME: usize = 8 * 1024;
/// See [`CONTROL_FRAME`].
pub const CONTROL_UNWRITTEN: usize = 16 * 1024;

/// Bytes of TLS records that are made and not yet in the kernel.
pub const TLS_UNWRITTEN: usize = 512 * 1024;

/// Bytes that are read from a socket at once; every connection holds as much.
pub const TLS_UNREAD: usize = 64 * 1024;

/// Bytes of a log that a site sends in one message: what is written in a second
/// of a talkative job. A stream of logs holds two of them at either end.
pub const LOG_CHUNK: usize = 64 * 1024;

/// Bytes of one live log that the server keeps; of more, the last. A job of a
/// thousand sites keeps a thousand of them.
pub const LOG_BUDGET: u64 = 64 * 1024 * 1024;

/// Bytes of an answer about files: what fits a screen many times over, and a
/// control message with room for its escapes.
pub const FILES_ANSWER: usize = 256 * 1024;

/// Entries of one listing of a folder; of more it is said how many there are.
pub const FILES_ENTRIES: usize = 2_000;

/// Lines of one `head`, `tail` or `grep`.
pub const FILES_LINES: usize = 10_000;

/// Bytes of a line in an answer about files; the rest of a longer one is cut and
/// said to be.
pub const FILES_LINE: usize = 4 * 1024;

/// Bytes of a path in a question about files, and of a pattern.
pub const FILES_PATH: usize = 1024;

/// Bytes that one `grep` reads; it says where it stopped.
pub const GREP_BYTES: u64 = 1024 * 1024 * 1024;

/// Bytes of memory that a compiled pattern may take: what `x{1000}{1000}` asks
/// for is refused. A line takes at most its length times this much time.
pub const GREP_PATTERN: usize = 256 * 1024;

/// Bytes of a secret's file: a token or a key.
pub const SECRET: u64 = 64 * 1024;

/// Bytes of jobs' folders that a site keeps for people to look at after the jobs'
/// end; the oldest goes first.
pub const JOBS_KEPT: u64 = 4 * 1024 * 1024 * 1024;

/// Answers to a server's questions that a site works on at a time.
pub const ASKS: usize = 8;

/// Jobs that a site fetches and unpacks at a time.
pub const DEPLOYS: usize = 4;

/// Requests of the admin interface that are answered at once, bodies that are
/// still being read by clients included. Each holds some 50 KB; what a download
/// reads ahead comes on top ([`REST_PIECE`], twice).
pub const REST_REQUESTS: usize = 256;

/// The same of those who have yet to log in, apart from the others: strangers
/// cannot shut out whom the server knows.
pub const REST_STRANGERS: usize = 64;

/// The same of one person: a stuck script must not shut out the others.
pub const REST_REQUESTS_EACH: usize = 32;

/// Logins whose signature is checked at once. Each is a few hundred microseconds
/// of one core that a stranger can ask for.
pub const REST_LOGINS: usize = 8;

/// Bundles that are received at once: each is a file on the server's disk.
pub const REST_UPLOADS: usize = 8;

/// Bytes of a bundle as it is uploaded: an initial model of any size that is
/// trained today. What the disk has not is refused before.
pub const REST_UPLOAD: u64 = 1024 * 1024 * 1024 * 1024;

/// Bytes of a bundle that are still read after it was refused, so that its sender
/// gets to read why.
pub const REST_PASSED_OVER: usize = 256 * 1024 * 1024;

/// Bytes of a JSON body of a request. The largest is a log configuration.
pub const REST_JSON: usize = 128 * 1024;

/// Bytes of a JSON body of an answer that a client reads: the longest list.
pub const REST_ANSWER: usize = 64 * 1024 * 1024;

/// Bytes of a file that a request holds at a time.
pub const REST_PIECE: usize = 256 * 1024;

/// Bytes of a log in one answer.
pub const REST_LOG: usize = 1024 * 1024;

/// Events in one answer.
pub const REST_EVENTS: u32 = 1000;

/// Files of a job in one list, and folders that are looked into for it.
pub const REST_FILES: usize = 20_000;

/// Tokens that are good at a time, and those of one person. Beyond that the one
/// that ends first goes. Each costs 200 bytes.
pub const REST_TOKENS: usize = 4096;
/// See [`REST_TOKENS`].
pub const REST_TOKENS_EACH: usize = 64;

/// Bytes of the header with a token, and of a submit key.
pub const REST_HEADER: usize = 256;

/// Bytes of one file of a startup kit: a configuration, a certificate chain. A
/// kit is read whole.
pub const KIT_FILE: usize = PEM_FILE;

/// Bytes of a project file: ten thousand participants, written at length.
pub const PROJECT_FILE: usize = 4 * 1024 * 1024;

/// Participants of one project. Each costs a key pair and a dozen small files.
pub const PARTICIPANTS: usize = 10_000;

/// Bytes of the list of a bundle's members: it is held whole by who checks it.
pub const BUNDLE_LIST: usize = 4 * 1024 * 1024;

/// Members of a bundle: the source tree of a large project.
pub const BUNDLE_MEMBERS: usize = 10_000;

/// Bytes of a member's path within a bundle, and of one part of it: what the
/// archive's own header holds, so that a long path needs no extension of it.
pub const BUNDLE_PATH: usize = 255;

/// Bytes of all code of a bundle. Code is small; data and models of sites are
/// not sent, and an initial model counts by itself ([`BUNDLE_MODEL`]).
pub const BUNDLE_CODE: u64 = 256 * 1024 * 1024;

/// Bytes of a bundle's initial model, on the server's disk.
pub const BUNDLE_MODEL: u64 = 1024 * 1024 * 1024 * 1024;

/// Bytes of a submit key: a name that the submitter chooses, so that the same
/// job submitted twice is one job.
pub const SUBMIT_KEY: usize = 128;

/// Jobs that a site may say to have in hand when it connects. Each is a name and a
/// number at the server.
pub const SITE_JOBS: usize = 1024;

/// Bytes of what a site says of itself: names of environments, data and resources.
/// The server holds them for each site.
pub const SITE_FACTS: usize = 256 * 1024;

/// Bytes of a sentence that a site says about a job.
pub const NODE_SENTENCE: usize = 4096;

/// Questions to sites that wait for their answers.
pub const WAITING_ASKS: usize = 1024;

/// Agents that call, or are given up, before a job's run takes notice: those of
/// a large job at once. Each waiting call is a stream.
pub const JOB_CALLS: usize = 16 * 1024;
