//! Owns: the signals that end a process for a fault of its own (SEGV, BUS, FPE, ILL, and ABRT by abort(3)): what is still
//! done in the handler, and that the signal then does what it would have done without us.
//! Rule: everything reached from the handler is async-signal-safe (signal-safety(7)): system calls on plain numbers, atomics,
//! memory that was there before; nothing is allocated and no lock is taken, as the fault may lie inside malloc. Handlers
//! installed before ours run after it, those installed later run first and decide.
//! Never: knows connections (the scene does), keeps the process alive.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr};

use libc::{c_int, c_void, siginfo_t};

use super::signal::{self, SIGABRT};

const FAULTS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];
const ALL: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, SIGABRT];
/// Of the stack on which a handler runs: three nested frames with every vector register, and what they call.
const STACK: usize = 128 * 1024;
/// On less of somebody else's, Python's stacks are not written.
const ROOM: usize = 64 * 1024;
/// A fault so far below the stack pointer, or so little above it, is the stack's end.
const BELOW: usize = 256 * 1024;
const ABOVE: usize = 64 * 1024;
/// How long a thread that crashes too waits for the first one, in steps of a tenth of a second.
const PATIENCE: u32 = 50;

/// What ended the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub signal: c_int,
    /// The thread's C stack was full.
    pub stack_overflow: bool,
}

/// What is to be done first when the process crashes. It is called in the handler, in the thread that crashed.
pub trait Scene: Sync {
    /// Async-signal-safe. True: the stacks of all threads are to be written too.
    fn last_acts(&self, fault: Fault) -> bool;
}

/// What was there before us, for each of `ALL`. Never freed, as a handler may be reading it.
static BEFORE: [AtomicPtr<libc::sigaction>; ALL.len()] =
    [const { AtomicPtr::new(ptr::null_mut()) }; ALL.len()];
static INSTALLED: AtomicBool = AtomicBool::new(false);
/// Never freed either.
static SCENE: AtomicPtr<&'static dyn Scene> = AtomicPtr::new(ptr::null_mut());
/// Whose crashes the scene is about: not those of a process forked from it.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// The thread that crashed first.
static DYING: AtomicI32 = AtomicI32::new(0);
/// The next ABRT is one that was sent for a reason.
static EXPECTED: AtomicBool = AtomicBool::new(false);

/// Puts our handlers in front of those that are there, but for ABRT; once in a process and those forked from it.
pub fn install() -> io::Result<()> {
    match INSTALLED.swap(true, AcqRel) {
        false => FAULTS.into_iter().try_for_each(take_over),
        true => Ok(()),
    }
}

/// The same for ABRT, in front of who is asked to stop by it.
pub fn install_abort() -> io::Result<()> {
    take_over(SIGABRT)
}

fn take_over(signal: c_int) -> io::Result<()> {
    let handler = on_fault as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
    // SAFETY: a zeroed sigaction is a valid one; the handler has the signature that SA_SIGINFO wants.
    let found = unsafe {
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = handler;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut ours.sa_mask);
        let mut found = MaybeUninit::uninit();
        match libc::sigaction(signal, &ours, found.as_mut_ptr()) {
            0 => found.assume_init(),
            _ => return Err(io::Error::last_os_error()),
        }
    };
    // Behind ourselves there is who was there before.
    if let Some(place) = place(signal).filter(|_| found.sa_sigaction != handler) {
        place.store(Box::into_raw(Box::new(found)), Release);
    }
    Ok(())
}

/// In a process that the application has forked, and async-signal-safe: what was there before us is there again, unless
/// somebody has come in front of us.
pub(super) fn stand_aside() {
    for signal in ALL {
        let Some(before) = before(signal) else { continue };
        // SAFETY: both calls are given a valid action, ours to be filled or the one that sigaction(2) gave before.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, ptr::null(), &mut now);
            if now.sa_sigaction == on_fault as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize {
                libc::sigaction(signal, before, ptr::null_mut());
            }
        }
    }
}

fn place(signal: c_int) -> Option<&'static AtomicPtr<libc::sigaction>> {
    ALL.iter().position(|known| *known == signal).map(|at| &BEFORE[at])
}

/// From now on a crash of this process is `scene`'s.
pub fn set_scene(scene: &'static dyn Scene) {
    SCENE.store(Box::into_raw(Box::new(scene)), Release);
    OWNER.store(own_pid(), Release);
}

fn scene() -> Option<&'static dyn Scene> {
    let scene = SCENE.load(Acquire);
    // SAFETY: null, or from `Box::into_raw` and never freed.
    unsafe { scene.as_ref() }.copied()
}

/// Gives the calling thread a stack for its handlers, so that one that has no stack left can have them too. It is never
/// given back: such threads live as long as the process.
pub fn guard_thread() -> io::Result<()> {
    // SAFETY: a new anonymous mapping; nobody else uses it as a stack.
    unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let memory = libc::mmap(ptr::null_mut(), STACK, access, flags, -1, 0);
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = libc::stack_t { ss_sp: memory, ss_flags: 0, ss_size: STACK };
        match libc::sigaltstack(&stack, ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The next ABRT of this process is no crash, however it comes.
pub fn expect_abort() {
    EXPECTED.store(true, Release);
}

/// Whether another thread has crashed: what fails now, fails for that.
pub fn is_near() -> bool {
    DYING.load(Acquire) != 0
}

/// Where a thread stays that finds that the process is about to end.
pub fn wait_for_the_end() -> ! {
    loop {
        // SAFETY: pause(2) has no precondition.
        unsafe { libc::pause() };
    }
}

fn own_pid() -> c_int {
    // SAFETY: getpid(2) has no precondition.
    unsafe { libc::getpid() }
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if signal == SIGABRT && !is_abort(info) {
        return call_before(signal, info, context);
    }
    // SAFETY: gettid(2) has no precondition; sigaction with SA_SIGINFO passes a valid siginfo.
    let (own, synchronous) = unsafe { (libc::gettid(), (*info).si_code > 0 && signal != SIGABRT) };
    // A process between vfork(2) and exec has our memory: nothing in it may be changed.
    if OWNER.load(Acquire) == own_pid() {
        match DYING.compare_exchange(0, own, AcqRel, Acquire) {
            Ok(_) => last_acts(Fault { signal, stack_overflow: is_stack_overflow(signal, info, context) }),
            // By what we do here: no more of it.
            Err(first) if first == own => {}
            Err(_) => wait_a_while(),
        }
    }
    pass_on(signal, synchronous);
}

fn last_acts(fault: Fault) {
    if scene().is_some_and(|scene| scene.last_acts(fault)) {
        write_stacks();
    }
}

/// abort(3) and raise(3) send it by tgkill(2), others by kill(2). A handler in front of ours may have raised it again.
fn is_abort(info: *const siginfo_t) -> bool {
    // SAFETY: as in `on_fault`.
    let code = unsafe { (*info).si_code };
    code != libc::SI_USER && code != libc::SI_QUEUE && !EXPECTED.swap(false, AcqRel)
}

fn before(signal: c_int) -> Option<&'static libc::sigaction> {
    let before = place(signal)?.load(Acquire);
    // SAFETY: null, or from `Box::into_raw` and never freed.
    unsafe { before.as_ref() }
}

/// An ABRT that asks for something goes to whoever heard of it before us.
fn call_before(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(before) = before(signal) else { return };
    match before.sa_sigaction {
        libc::SIG_DFL => die(signal),
        libc::SIG_IGN => {}
        // SAFETY: the kernel would call it in the same way, by what its flags say of its signature.
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => unsafe {
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = std::mem::transmute(handler);
            handler(signal, info, context);
        },
        // SAFETY: as above.
        handler => unsafe {
            let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
            handler(signal);
        },
    }
}

/// Puts back what was there before us. The instruction at fault runs again when the handler returns, and meets it; what was
/// sent has to be sent again.
fn pass_on(signal: c_int, synchronous: bool) {
    match before(signal) {
        // What was before us for ABRT hears of requests to stop, and would let the process live.
        Some(before) if signal != SIGABRT && before.sa_sigaction != libc::SIG_IGN => {
            // SAFETY: it is as sigaction(2) gave it.
            unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
            if !synchronous {
                raise_now(signal);
            }
        }
        _ => die(signal),
    }
}

/// The kernel's default, at once.
fn die(signal: c_int) {
    signal::set_default(signal);
    raise_now(signal);
}

fn raise_now(signal: c_int) {
    // SAFETY: the set is initialised by sigemptyset; raise(3) has no precondition.
    unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
        libc::raise(signal);
    }
}

fn wait_a_while() {
    for _ in 0..PATIENCE {
        pause(100);
    }
}

fn pause(milliseconds: c_int) {
    // SAFETY: poll(2) of no descriptors is a sleep.
    unsafe { libc::poll(ptr::null_mut(), 0, milliseconds) };
}

/// Has faulthandler write the stacks of all threads, from C, if it has been told to do so on this signal.
pub fn write_stacks() {
    let signal = signal::stack_dump();
    // SAFETY: both calls only fill what they are given.
    let (action, stack) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut stack: libc::stack_t = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action);
        libc::sigaltstack(ptr::null(), &mut stack);
        (action, stack)
    };
    let cramped = stack.ss_flags & libc::SS_ONSTACK != 0 && stack.ss_size < ROOM;
    if action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN && !cramped {
        raise_now(signal);
    }
}

fn is_stack_overflow(signal: c_int, info: *const siginfo_t, context: *const c_void) -> bool {
    let Some(stack_pointer) =
        stack_pointer(context).filter(|_| matches!(signal, libc::SIGSEGV | libc::SIGBUS))
    else {
        return false;
    };
    // SAFETY: of a fault the kernel fills in the address; of a signal that was sent the code tells.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let near = stack_pointer.saturating_sub(BELOW)..stack_pointer.saturating_add(ABOVE);
    matches!(code, 1 | 2) && near.contains(&address)
}

#[cfg(target_arch = "x86_64")]
fn stack_pointer(context: *const c_void) -> Option<usize> {
    // SAFETY: with SA_SIGINFO the third argument is a ucontext_t.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    Some(context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize)
}

#[cfg(target_arch = "aarch64")]
fn stack_pointer(context: *const c_void) -> Option<usize> {
    // SAFETY: with SA_SIGINFO the third argument is a ucontext_t.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    Some(context.uc_mcontext.sp as usize)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn stack_pointer(_: *const c_void) -> Option<usize> {
    None
}

// ---- for scenes

/// Octets and the end of the stream. What the peer has sent is taken, as the kernel would answer it with a reset that
/// overtakes our octets. False when the octets did not all fit.
pub fn say(number: c_int, octets: &[u8]) -> bool {
    // SAFETY: the slice is valid for its length; a number that is no socket is reported.
    unsafe {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let sent = libc::send(number, octets.as_ptr().cast(), octets.len(), flags);
        libc::shutdown(number, libc::SHUT_WR);
        drain(number);
        sent == octets.len() as isize
    }
}

/// The end of the stream, in order.
pub fn end(number: c_int) {
    // SAFETY: a number that is no socket is reported.
    unsafe { libc::shutdown(number, libc::SHUT_WR) };
    drain(number);
}

fn drain(number: c_int) {
    let mut waste = [0u8; 4096];
    for _ in 0..256 {
        // SAFETY: the buffer is ours.
        let taken = unsafe { libc::recv(number, waste.as_mut_ptr().cast(), waste.len(), libc::MSG_DONTWAIT) };
        if taken <= 0 {
            return;
        }
    }
}

/// Nobody in this process takes anything from the socket any more; `other` is what it finds there instead.
pub fn blind(number: c_int, other: c_int) {
    // SAFETY: dup3 replaces a descriptor at once; its owner goes on owning the number.
    unsafe { libc::dup3(other, number, libc::O_CLOEXEC) };
}

/// Whether octets have come that nobody has read.
pub fn has_input(number: c_int) -> bool {
    let mut first = 0u8;
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the buffer is one octet of ours.
    unsafe { libc::recv(number, ptr::addr_of_mut!(first).cast(), 1, flags) > 0 }
}

/// Whether the connection was to be reset by whatever closes it (socket(7), SO_LINGER).
pub fn resets_on_close(number: c_int) -> bool {
    let mut linger = libc::linger { l_onoff: 0, l_linger: 0 };
    let mut length = size_of::<libc::linger>() as libc::socklen_t;
    let into = ptr::addr_of_mut!(linger).cast();
    // SAFETY: the structure is ours and has the length given.
    let found = unsafe { libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_LINGER, into, &mut length) };
    found == 0 && linger.l_onoff != 0
}

/// Breaks a TCP connection off where the peer can see it, whoever else has a descriptor of it (connect(2), AF_UNSPEC).
pub fn reset(number: c_int) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: both structures are valid for the lengths given.
    unsafe {
        let mut nowhere: libc::sockaddr = std::mem::zeroed();
        nowhere.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
        let length = size_of::<libc::linger>() as libc::socklen_t;
        libc::setsockopt(number, libc::SOL_SOCKET, libc::SO_LINGER, ptr::addr_of!(linger).cast(), length);
        libc::connect(number, &nowhere, size_of::<libc::sockaddr>() as libc::socklen_t);
    }
}

/// A millisecond.
pub fn pause_briefly() {
    pause(1);
}

/// Octets to a file, as far as it takes them. False, and nothing is written, where its reader would have to be waited for.
pub fn note(number: c_int, octets: &[u8]) -> bool {
    let mut room = libc::pollfd { fd: number, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one structure of ours; the slice is valid for its length.
    unsafe {
        let has_room = libc::poll(&mut room, 1, 0) == 1 && room.revents & libc::POLLOUT != 0;
        has_room && libc::write(number, octets.as_ptr().cast(), octets.len()) >= 0
    }
}
