//! Python functions run in processes of their own, with the environment's own interpreter: a crash
//! or a lock that is never let go hurts one task.
#![expect(unsafe_code, reason = "a child asks to end with this process between fork and exec")]

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ebbtide_array::{CALL_INPUTS_MAX, CHUNK_BYTES_MAX, Call, DType, Grid};
use ebbtide_buffer::{Buffer, Pool};
use ebbtide_core::Bytes;
use ebbtide_core::message::Failure;
use ebbtide_kernels::assemble;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd, pread};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, prlimit};
use serde::{Deserialize, Serialize};

use crate::usage;

/// What runs in the process. It needs cloudpickle, and NumPy where arrays are given or made.
const PROGRAM: &str = include_str!("runner/runner.py");

/// Longest header of an answer: a text and a few numbers.
const HEADER_BYTES_MAX: u64 = 1 << 20;

/// Longest pickled exception.
const EXCEPTION_BYTES_MAX: u64 = 1 << 16;

/// Longest answer beside shared memory.
const INLINE_BYTES_MAX: u64 = 1 << 16;

/// How long an interpreter may take to start.
const START_MAX: Duration = Duration::from_mins(1);

/// How long a process may take to end after it closed its socket.
const END_MAX: Duration = Duration::from_millis(50);

/// Variables of libraries that would otherwise start a thread for each core of the machine.
pub(crate) const THREADS: [&str; 5] = [
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
];

/// How Python is started.
#[derive(Clone, Debug)]
pub struct Interpreter(OsString);

impl Interpreter {
    /// The interpreter at this path, or with this name on the PATH.
    pub fn new(path: impl Into<OsString>) -> Self {
        Self(path.into())
    }
}

impl Default for Interpreter {
    /// The first `python3` on the PATH: the environment's own.
    fn default() -> Self {
        Self::new("python3")
    }
}

/// Ends every process of this one that runs a Python function, with what the function started.
/// Whoever waits for one of them is told that it ended.
pub fn end_all() {
    usage::end_all();
}

/// A process that runs one function at a time.
pub(crate) struct Runner {
    child: Child,
    socket: Arc<UnixStream>,
    /// Bytes that came with a header and belong to what follows it.
    ahead: Vec<u8>,
    python: (u8, u8),
    bound_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Request<'a> {
    name: &'a str,
    function: usize,
    arguments: usize,
    memory: u64,
    inputs: Vec<Shaped>,
    returns: Option<Shaped>,
}

#[derive(Serialize)]
struct Shaped {
    dtype: &'static str,
    shape: Vec<u64>,
}

#[derive(Deserialize)]
struct Hello {
    python: (u8, u8),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reply {
    Error {
        error: String,
        exception: u64,
    },
    Made {
        bytes: u64,
        #[serde(default)]
        shared: bool,
    },
}

impl Runner {
    /// Starts a process and waits until it says which Python it is.
    pub(crate) fn start(interpreter: &Interpreter) -> Result<Self, Failure> {
        let name = interpreter.0.display();
        let told = |error: io::Error| {
            Failure::new(format!(
                "Python functions need an interpreter, and {name} cannot be started: {error}; use \
                 an image or a package list with Python"
            ))
        };
        let (ours, theirs) = UnixStream::pair().map_err(told)?;
        let mut command = Command::new(&interpreter.0);
        command.arg("-u").arg("-c").arg(PROGRAM).arg(theirs.as_raw_fd().to_string());
        command.stdin(Stdio::null());
        for variable in THREADS {
            command.env(variable, "1");
        }
        // Credentials are the worker's alone.
        command.env_remove(ebbtide_contract::variable::CREDENTIALS);
        let kept = theirs.as_raw_fd();
        // SAFETY: two system calls that allocate nothing; the descriptor is open until the spawn.
        unsafe {
            command.pre_exec(move || {
                fcntl_setfd(BorrowedFd::borrow_raw(kept), FdFlags::empty())?;
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                Ok(())
            });
        }
        // A group of its own: what the function starts goes with it.
        let child = command.process_group(0).spawn().map_err(told)?;
        drop(theirs);
        usage::watch(child.id());
        let mut runner = Self {
            child,
            socket: Arc::new(ours),
            ahead: Vec::new(),
            python: (0, 0),
            bound_bytes: None,
        };
        match runner.greet() {
            Ok(python) => {
                runner.python = python;
                Ok(runner)
            }
            Err(error) => Err(Failure::new(format!(
                "{name} runs no Python functions ({error}); it {}",
                runner.ended()
            ))),
        }
    }

    fn greet(&mut self) -> io::Result<(u8, u8)> {
        self.socket.set_read_timeout(Some(START_MAX))?;
        let (header, _) = self.receive()?;
        self.socket.set_read_timeout(None)?;
        let hello: Hello = serde_json::from_slice(&header).map_err(io::Error::other)?;
        Ok(hello.python)
    }

    /// What ends the process when it is shut down, from any thread.
    pub(crate) fn socket(&self) -> Arc<UnixStream> {
        Arc::clone(&self.socket)
    }

    /// Calls a function with arrays, each given as its chunks. After a failure that is a crash the
    /// process is gone.
    pub(crate) fn call(
        &mut self,
        call: &Call,
        arrays: &[(DType, Grid)],
        chunks: &[&Buffer],
        pool: &Pool,
    ) -> Result<Buffer, Failure> {
        if self.python != call.python {
            let ((major, minor), (here_major, here_minor)) = (call.python, self.python);
            return Err(Failure::new(format!(
                "{} comes from Python {major}.{minor} and the workers have Python \
                 {here_major}.{here_minor}, which cannot read it: use Python \
                 {here_major}.{here_minor} here, or say python: \"{major}.{minor}\" in the \
                 cluster's environment",
                call.name
            )));
        }
        self.bound(call).map_err(|error| self.broken(call, &error))?;
        let shared = share(arrays, chunks).map_err(|error| {
            Failure::new(format!("{}: its arrays cannot be shared: {error}", call.name))
        })?;
        let answered = self.send(call, arrays, &shared).and_then(|()| self.receive());
        let (header, descriptor) = answered.map_err(|error| self.broken(call, &error))?;
        let reply = serde_json::from_slice::<Reply>(&header);
        match reply.map_err(|error| self.broken(call, &io::Error::other(error)))? {
            Reply::Error { error, exception } => {
                let exception = self.read(exception.min(EXCEPTION_BYTES_MAX));
                let exception = exception.map_err(|error| self.broken(call, &error))?;
                Err(Failure { error, exception, is_crash: false })
            }
            Reply::Made { bytes, shared } => {
                let bytes = accepted(call, bytes)?;
                let mut buffer = pool.take(bytes);
                let filled = match descriptor {
                    Some(descriptor) if shared => fill(&mut buffer, &descriptor),
                    _ if bytes as u64 <= INLINE_BYTES_MAX => self.read_into(&mut buffer),
                    _ => Err(io::Error::other("a long answer without shared memory")),
                };
                filled.map(|()| buffer).map_err(|error| self.broken(call, &error))
            }
        }
    }

    /// Bounds what the process may allocate from now on, with what it has.
    fn bound(&mut self, call: &Call) -> io::Result<()> {
        if self.bound_bytes == Some(call.memory_bytes) {
            return Ok(());
        }
        let Rlimit { maximum, .. } = getrlimit(Resource::Data);
        let wanted = maximum.map_or(call.memory_bytes, |maximum| maximum.min(call.memory_bytes));
        prlimit(
            Some(Pid::from_child(&self.child)),
            Resource::Data,
            Rlimit { current: Some(wanted), maximum },
        )?;
        self.bound_bytes = Some(call.memory_bytes);
        Ok(())
    }

    fn send(
        &mut self,
        call: &Call,
        arrays: &[(DType, Grid)],
        descriptors: &[OwnedFd],
    ) -> io::Result<()> {
        let shaped = |dtype: DType, shape: Vec<u64>| Shaped { dtype: dtype.name(), shape };
        let request = Request {
            name: &call.name,
            function: call.function.len(),
            arguments: call.arguments.len(),
            memory: call.memory_bytes,
            inputs: arrays.iter().map(|(dtype, grid)| shaped(*dtype, grid.shape())).collect(),
            returns: (call.dtype != DType::Object).then(|| shaped(call.dtype, call.shape.clone())),
        };
        let mut message = serde_json::to_vec(&request).map_err(io::Error::other)?;
        let prefix = (message.len() as u64).to_le_bytes();
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(|it| it.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CALL_INPUTS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::Error::other(format!("at most {CALL_INPUTS_MAX} arrays are taken")));
        }
        message.extend_from_slice(&call.function);
        message.extend_from_slice(&call.arguments);
        // As one, so that the process wakes up once.
        let parts = [IoSlice::new(&prefix), IoSlice::new(&message)];
        let sent = sendmsg(&*self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
        match sent.checked_sub(prefix.len()) {
            Some(sent) => (&*self.socket).write_all(&message[sent..]),
            None => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// A header, and the shared memory that came with it.
    fn receive(&mut self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut received = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let RecvMsg { bytes, .. } = recvmsg(
            &*self.socket,
            &mut [IoSliceMut::new(&mut received)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut descriptor = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptor = descriptors.last();
            }
        }
        self.ahead = received[..bytes].to_vec();
        let mut prefix = [0; 8];
        self.read_into(&mut prefix)?;
        let length = u64::from_le_bytes(prefix);
        if length > HEADER_BYTES_MAX {
            return Err(io::Error::other(format!("a header of {length} bytes")));
        }
        Ok((self.read(length)?, descriptor))
    }

    fn read(&mut self, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    fn read_into(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let here = bytes.len().min(self.ahead.len());
        bytes[..here].copy_from_slice(&self.ahead[..here]);
        self.ahead.drain(..here);
        (&*self.socket).read_exact(&mut bytes[here..])
    }

    /// The process is gone or cannot be understood any more: what is left of it is ended.
    fn broken(&mut self, call: &Call, error: &io::Error) -> Failure {
        let why = self.ended();
        tracing::warn!(function = call.name, %error, why, "a function's process ended");
        Failure {
            error: format!(
                "{} ended the process that ran it, which {why}; if it needs more memory than {}, \
                 say memory=",
                call.name,
                Bytes(call.memory_bytes)
            ),
            exception: Vec::new(),
            is_crash: true,
        }
    }

    /// Ends the process if it has not ended, and tells how it did.
    fn ended(&mut self) -> String {
        // It may close its socket a moment before it ends.
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if start.elapsed() < END_MAX => thread::sleep(Duration::from_millis(1)),
                Ok(None) | Err(_) => {
                    self.end();
                    return "no longer answered".to_owned();
                }
            }
        };
        match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (_, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        }
    }

    fn end(&mut self) {
        // Fails only when nobody of the group is left.
        let _: Result<(), _> = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        // Fails only when it was waited for.
        let _: io::Result<_> = self.child.wait();
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        usage::unwatch(self.child.id());
        self.end();
    }
}

/// The length of an answer, if it may have that.
fn accepted(call: &Call, bytes: u64) -> Result<usize, Failure> {
    let promised = call
        .shape
        .iter()
        .try_fold(call.dtype.item_bytes(), |bytes, extent| bytes.checked_mul(*extent));
    let fits = if call.dtype == DType::Object {
        bytes <= call.memory_bytes.min(CHUNK_BYTES_MAX)
    } else {
        promised == Some(bytes)
    };
    usize::try_from(bytes).ok().filter(|_| fits).ok_or_else(|| {
        let (name, memory) = (&call.name, Bytes(call.memory_bytes));
        let expected = if call.dtype != DType::Object {
            "which is not what was promised".to_owned()
        } else if bytes > CHUNK_BYTES_MAX {
            format!("and at most {} travel: return less", Bytes(CHUNK_BYTES_MAX))
        } else {
            format!("which is more than the {memory} that it may have: return less, or say memory=")
        };
        Failure::new(format!("{name} returned {}, {expected}", Bytes(bytes)))
    })
}

/// Each array as one piece of sealed memory, row-major.
fn share(arrays: &[(DType, Grid)], chunks: &[&Buffer]) -> io::Result<Vec<OwnedFd>> {
    let mut rest = chunks.iter();
    let mut shared = Vec::with_capacity(arrays.len());
    for (dtype, grid) in arrays {
        let space = grid.space().map_err(io::Error::other)?;
        let item = usize::try_from(dtype.item_bytes()).map_err(io::Error::other)?;
        let count = space.tasks();
        let next = || io::Error::other("a chunk is missing");
        let descriptor = if count == 1 {
            seal(rest.next().ok_or_else(next)?)?
        } else {
            let elements: u64 = grid.shape().iter().product();
            let length = usize::try_from(elements).map_err(io::Error::other)? * item;
            let mut whole = vec![0; length];
            for index in 0..count {
                let chunk = rest.next().ok_or_else(next)?;
                let at = grid.chunk(&space.unravel(index));
                assemble::place(&mut whole, &grid.shape(), chunk, &at, item);
            }
            seal(&whole)?
        };
        shared.push(descriptor);
    }
    Ok(shared)
}

/// Memory with these bytes that nobody can change any more.
fn seal(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let descriptor = memfd_create("ebbtide-input", flags)?;
    let mut file = std::fs::File::from(descriptor);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(file.into())
}

/// Copies what lies in shared memory. Whoever made it may still change it: these are only bytes.
fn fill(buffer: &mut Buffer, descriptor: &OwnedFd) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let read = pread(descriptor, &mut buffer[done..], done as u64)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        done += read;
    }
    Ok(())
}
