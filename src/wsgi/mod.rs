//! Owns: the application as WSGI: one request from environ to `close()`, and what becomes of an exception.
//! Rule: each file here is a section of PEP 3333; this one calls them in order. A request that raises is answered (500, or
//! cut where the client can see it) and its traceback logged once; nothing an application does ends the worker.
//! Never: sockets, epoll, framing.

pub mod early_hints;
pub mod environ;
pub mod errors;
pub mod ffi;
pub mod file_wrapper;
pub mod input;
pub mod load;
pub mod names;
pub mod output;
pub mod request;
pub mod socket;
pub mod start_response;
pub mod warm_up;

use std::io;
use std::sync::Arc;

use pyo3::exceptions::{PyStopIteration, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use self::early_hints::EarlyHints;
use self::environ::{Environ, Refusal};
use self::errors::ErrorStream;
use self::ffi::Lease;
use self::file_wrapper::FileWrapper;
use self::input::Input;
use self::output::Broken;
use self::socket::Socket;
use self::start_response::Reply;
use crate::app::{App, Caller, Verdict};
use crate::exchange::{BodyFault, Exchange};
use crate::hooks::{report, AccessHook, Hook, RequestHooks};
use crate::http::{octets, Reject};
use crate::listener::Local;
use crate::logger;
use crate::proxy::Trust;
use crate::python::{self, traceback, Interrupts};
use crate::version;

/// What every environ of a worker is made of.
pub struct Surroundings {
    pub threads: usize,
    pub workers: usize,
    pub trust: Trust,
    pub root_path: String,
    pub locals: Vec<Local>,
    /// `wsgi.errors`, where a logger in Python has the log.
    pub errors: Option<Py<PyAny>>,
}

impl Surroundings {
    /// What is the same in every environ of the worker.
    fn base<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let base = PyDict::new(py);
        base.set_item(intern!(py, "wsgi.version"), PyTuple::new(py, [1, 0])?)?;
        match &self.errors {
            Some(stream) => base.set_item(intern!(py, "wsgi.errors"), stream)?,
            None => base.set_item(intern!(py, "wsgi.errors"), Bound::new(py, ErrorStream)?)?,
        }
        base.set_item(intern!(py, "wsgi.multithread"), self.threads > 1)?;
        base.set_item(intern!(py, "wsgi.multiprocess"), self.workers > 1)?;
        base.set_item(intern!(py, "wsgi.run_once"), false)?;
        base.set_item(intern!(py, "wsgi.file_wrapper"), py.get_type::<FileWrapper>())?;
        base.set_item(intern!(py, "wsgi.input_terminated"), true)?;
        // Of a request that has no client; the others have their own.
        base.set_item(intern!(py, "wsgi.early_hints"), Py::new(py, EarlyHints::new(Arc::default()))?)?;
        base.set_item(intern!(py, "gunicorn.socket"), Py::new(py, Socket::new(Arc::default()))?)?;
        let software = own_name(py, intern!(py, "SERVER_SOFTWARE"))?;
        base.set_item(
            intern!(py, "SERVER_SOFTWARE"),
            software.as_deref().unwrap_or(version::SERVER_SOFTWARE),
        )?;
        Ok(base)
    }

    /// What makes one thread's environs of it.
    fn environ(&self, base: &Bound<'_, PyDict>) -> PyResult<Environ> {
        Environ::new(base.py(), base, &self.locals, self.trust.clone(), &self.root_path)
    }
}

/// What the operator decided that an application can notice.
pub struct Circumstances {
    pub surroundings: Surroundings,
    pub sendfile: bool,
    pub interrupts: Interrupts,
    /// None where no hook is about requests.
    pub hooks: Option<Arc<RequestHooks>>,
    /// None where Rust writes the access log, or nobody does.
    pub access: Option<Arc<AccessHook>>,
}

pub struct WsgiApp {
    app: Py<PyAny>,
    circumstances: Circumstances,
    base: Py<PyDict>,
}

impl WsgiApp {
    pub fn new(app: Bound<'_, PyAny>, circumstances: Circumstances) -> PyResult<WsgiApp> {
        let base = circumstances.surroundings.base(app.py())?.unbind();
        Ok(WsgiApp { app: app.unbind(), circumstances, base })
    }
}

/// What the package says of the server, which applications and config files change to hide it. The stand-alone binary may
/// be without the package.
fn own_name(py: Python<'_>, attribute: &Bound<'_, PyString>) -> PyResult<Option<String>> {
    let modules = py.import(intern!(py, "sys"))?.getattr(intern!(py, "modules"))?;
    match modules.call_method1(intern!(py, "get"), ("rgunicorn",))?.getattr_opt(attribute)? {
        Some(name) => Ok(Some(name.extract()?)),
        None => Ok(None),
    }
}

/// Takes over the name for the Server field from the package, in the process that is to answer.
///
/// Errors: it is no text, or could not be sent.
pub fn take_server_name(py: Python<'_>) -> PyResult<()> {
    let Some(name) = own_name(py, intern!(py, "SERVER"))? else {
        return Ok(());
    };
    if !name.is_ascii() || !octets::is_field_value(name.as_bytes()) {
        return Err(PyValueError::new_err(format!(
            "rgunicorn.SERVER: {name:?} cannot be sent as a header field"
        )));
    }
    if name != version::SERVER {
        version::set_server(name.trim());
    }
    Ok(())
}

impl App for WsgiApp {
    fn caller(&self, thread: usize) -> Box<dyn Caller> {
        python::attach(|py| match WsgiCaller::new(py, self, thread) {
            Ok(caller) => Box::new(caller) as Box<dyn Caller>,
            Err(e) => {
                log::error!("Cannot prepare thread {thread} for requests\n{}", traceback(py, &e));
                Box::new(Unprepared)
            }
        })
    }
}

/// Answers for a thread that could not be prepared (no memory for a few objects).
struct Unprepared;

impl Caller for Unprepared {
    fn call(&mut self, exchange: &mut Exchange<'_>) -> Verdict {
        exchange.fail_with(Reject::InternalError);
        Verdict::GoOn
    }

    fn make_sure(&mut self) {}

    fn unlocked(&mut self, wait: &mut (dyn FnMut() + Send)) {
        wait();
    }
}

/// One thread's objects, reused from request to request while the application keeps none of them.
struct WsgiCaller {
    app: Py<PyAny>,
    environ: Environ,
    objects: Objects,
    sendfile: bool,
    hooks: Option<Arc<Hooked>>,
    access: Option<Arc<AccessHook>>,
    trust: Trust,
    /// Of the main thread, the only one that signals interrupt.
    interrupts: Option<Interrupts>,
    /// The thread keeps the interpreter while it has work, and gives it up to wait.
    attached: bool,
}

/// What a request's hooks need beside it.
struct Hooked {
    hooks: Arc<RequestHooks>,
    trust: Trust,
}

impl WsgiCaller {
    fn new(py: Python<'_>, app: &WsgiApp, thread: usize) -> PyResult<WsgiCaller> {
        let circumstances = &app.circumstances;
        let trust = circumstances.surroundings.trust.clone();
        let environ = circumstances.surroundings.environ(app.base.bind(py))?;
        let hooked = circumstances.hooks.clone();
        Ok(WsgiCaller {
            app: app.app.clone_ref(py),
            environ,
            objects: Objects::new(py)?,
            sendfile: circumstances.sendfile,
            hooks: hooked.map(|hooks| Arc::new(Hooked { hooks, trust: trust.clone() })),
            access: circumstances.access.clone(),
            trust,
            interrupts: (thread == 0).then(|| circumstances.interrupts.clone()),
            attached: circumstances.surroundings.threads == 1,
        })
    }

    fn handle(&mut self, py: Python<'_>, exchange: &mut Exchange<'_>) -> Verdict {
        let verdict = match self.hooks.clone() {
            None => self.answer(py, exchange, None).0,
            Some(hooked) => self.answer_hooked(py, exchange, &hooked),
        };
        self.renew(py);
        verdict
    }

    /// The request from environ to access log. The environ is that of the application, where one was made.
    fn answer<'py>(
        &mut self,
        py: Python<'py>,
        exchange: &mut Exchange<'_>,
        request: Option<&Bound<'py, PyAny>>,
    ) -> (Verdict, Option<Bound<'py, PyDict>>) {
        if self.access.is_some() {
            exchange.keep_head();
        }
        match self.environ.build(py, exchange, &self.objects) {
            Ok(environ) => {
                let outcome = self.run(py, exchange, &environ);
                if exchange.is_taken() {
                    self.objects.socket.get().close(py);
                }
                let verdict = match outcome {
                    Ok(()) => Verdict::GoOn,
                    Err(broken) => fail(py, exchange, broken),
                };
                self.log_access(py, exchange, request, Some(&environ));
                (verdict, Some(environ))
            }
            Err(refusal) => {
                let verdict = self.refuse(py, exchange, refusal);
                self.log_access(py, exchange, request, None);
                (verdict, None)
            }
        }
    }

    /// Tells of the request: Rust's access log, or the logger in Python.
    fn log_access<'py>(
        &self,
        py: Python<'py>,
        exchange: &Exchange<'_>,
        request: Option<&Bound<'py, PyAny>>,
        environ: Option<&Bound<'py, PyDict>>,
    ) {
        let Some(access) = &self.access else {
            return exchange.log_access(&|key| environ.and_then(|environ| lookup(environ, key)));
        };
        if exchange.is_overtaken() {
            return;
        }
        let told = || -> PyResult<()> {
            let request = match request {
                Some(request) => request.clone(),
                None => request::request(
                    access.request.bind(py),
                    exchange,
                    &self.trust,
                    self.objects.input.bind(py),
                )?,
            };
            let response = request::response(access.response.bind(py), &exchange.answer())?;
            let environ =
                environ.map_or_else(|| request::environ(py, exchange), |known| Ok(known.clone()))?;
            access.access(&response, &request, &environ, exchange.elapsed())
        };
        let told = match &self.interrupts {
            Some(interrupts) => interrupts.shield(told),
            None => told(),
        };
        if let Err(e) = told {
            logger::exception(py, "Exception in access() of the logger", &e);
        }
    }

    /// The same between `pre_request` and `post_request`. The latter is called whatever becomes of the request.
    fn answer_hooked(&mut self, py: Python<'_>, exchange: &mut Exchange<'_>, hooked: &Hooked) -> Verdict {
        let Hooked { hooks, trust } = hooked;
        let request =
            match request::request(hooks.request.bind(py), exchange, trust, self.objects.input.bind(py)) {
                Ok(request) => request,
                Err(e) => return fail(py, exchange, Broken::Raised(e)),
            };
        exchange.keep_head();
        let allowed = self.objects.lease.lend(exchange, || hooks.pre_request(&request));
        let (verdict, environ) = match allowed {
            Ok(()) => self.answer(py, exchange, Some(&request)),
            Err(e) => {
                let verdict = fail(py, exchange, Broken::Raised(e));
                self.log_access(py, exchange, Some(&request), None);
                (verdict, None)
            }
        };
        match self.after(exchange, hooks, &request, environ) {
            Err(e) if python::is_stop(py, &e) => Verdict::Stop,
            result => {
                report(py, Hook::PostRequest, result);
                verdict
            }
        }
    }

    /// As in gunicorn, there is neither environ nor response when the application was not called.
    fn after<'py>(
        &self,
        exchange: &Exchange<'_>,
        hooks: &RequestHooks,
        request: &Bound<'py, PyAny>,
        environ: Option<Bound<'py, PyDict>>,
    ) -> PyResult<()> {
        let py = request.py();
        match environ {
            Some(environ) => {
                let response = request::response(hooks.response.bind(py), &exchange.answer())?;
                hooks.post_request(request, &environ, &response)
            }
            None => hooks.post_request(request, &PyDict::new(py), py.None().bind(py)),
        }
    }

    fn run(
        &self,
        py: Python<'_>,
        exchange: &mut Exchange<'_>,
        environ: &Bound<'_, PyDict>,
    ) -> Result<(), Broken> {
        let Objects { lease, reply, start_response, .. } = &self.objects;
        let reply = reply.bind(py);
        reply.try_borrow_mut().map_err(PyErr::from)?.open();
        let arguments = (environ, start_response.bind(py));
        let called = lease.lend(exchange, || self.app.bind(py).call1(arguments));
        python::returned(py, called.as_ref().err(), || exchange.request_line());
        let result = called?;
        let outcome = output::respond(exchange, lease, reply, &result, self.sendfile);
        python::returned(py, outcome.as_ref().err().and_then(Broken::raised), || exchange.request_line());
        match &self.interrupts {
            Some(interrupts) => interrupts.shield(|| output::close(&result)),
            None => output::close(&result),
        }
        python::returned(py, None, || format!("close() of the response to {}", exchange.request_line()));
        outcome
    }

    fn refuse(&self, py: Python<'_>, exchange: &mut Exchange<'_>, refusal: Refusal) -> Verdict {
        match refusal {
            Refusal::Reject(reject) => {
                log::warn!("Invalid request from ip={}: {}", exchange.client(), reject.text());
                exchange.fail_with(reject);
                Verdict::GoOn
            }
            Refusal::Raised(e) => fail(py, exchange, Broken::Raised(e)),
        }
    }

    /// An object that the application kept stays with its request: the next one gets new ones.
    fn renew(&mut self, py: Python<'_>) {
        if !self.objects.are_kept(py) {
            return;
        }
        match Objects::new(py) {
            Ok(objects) => self.objects = objects,
            Err(e) => log::error!("Cannot renew a thread's objects\n{}", traceback(py, &e)),
        }
    }
}

/// By which the application reaches its request.
pub struct Objects {
    lease: Arc<Lease>,
    reply: Py<Reply>,
    start_response: Py<PyAny>,
    input: Py<Input>,
    early_hints: Py<EarlyHints>,
    socket: Py<Socket>,
}

impl Objects {
    fn new(py: Python<'_>) -> PyResult<Objects> {
        let lease = Arc::new(Lease::default());
        let reply = Bound::new(py, Reply::new(lease.clone()))?;
        let start_response = reply.getattr(intern!(py, "start_response"))?.unbind();
        let input = Py::new(py, Input::new(lease.clone()))?;
        let early_hints = Py::new(py, EarlyHints::new(lease.clone()))?;
        let socket = Py::new(py, Socket::new(lease.clone()))?;
        Ok(Objects { lease, reply: reply.unbind(), start_response, input, early_hints, socket })
    }

    /// At the end of a request, whether the application still has any of them.
    fn are_kept(&self, py: Python<'_>) -> bool {
        let kept = match self.reply.bind(py).try_borrow_mut() {
            Ok(mut reply) => {
                reply.active = false;
                reply.is_kept(py)
            }
            Err(_) => true,
        };
        kept || ffi::is_shared(&self.start_response, py)
            || ffi::is_shared(&self.input, py)
            || ffi::is_shared(&self.early_hints, py)
            || ffi::is_shared(&self.socket, py)
            || self.socket.get().is_used(py)
    }
}

impl Caller for WsgiCaller {
    fn call(&mut self, exchange: &mut Exchange<'_>) -> Verdict {
        python::attach(|py| {
            if !self.attached {
                exchange.enter();
            }
            let verdict = self.handle(py, exchange);
            // Code of the application's runs elsewhere too: `__del__`, handlers of signals.
            python::returned(py, None, || exchange.request_line());
            verdict
        })
    }

    fn make_sure(&mut self) {
        if !self.attached {
            python::attach(|_| ());
        }
    }

    fn unlocked(&mut self, wait: &mut (dyn FnMut() + Send)) {
        if !self.attached {
            return wait();
        }
        Python::attach(|py| {
            py.detach(wait);
            let handled = py.check_signals();
            python::returned(py, handled.as_ref().err(), || "a handler of a signal".into());
            if let Err(e) = handled {
                // Our own handlers raise it to end a request; here none runs.
                if !python::is_interrupt(py, &e) {
                    log::error!("Exception in a signal handler\n{}", traceback(py, &e));
                }
            }
        });
    }
}

/// Waits without the interpreter; an exception that a signal handler raised meanwhile is left set.
pub(crate) fn release(py: Python<'_>) -> impl Fn(&mut (dyn FnMut() + Send)) -> io::Result<()> + '_ {
    move |wait| {
        py.detach(wait);
        py.check_signals().map_err(|e| {
            e.restore(py);
            io::Error::from(io::ErrorKind::Interrupted)
        })
    }
}

/// Answers a request that raised, or whose client left.
fn fail(py: Python<'_>, exchange: &mut Exchange<'_>, broken: Broken) -> Verdict {
    let Broken::Raised(e) = broken else {
        log::debug!(
            "Client {} left before the response to {} was complete",
            exchange.client(),
            exchange.request_line()
        );
        return Verdict::GoOn;
    };
    match exchange.body_fault() {
        // So the libraries for WebSocket say to gunicorn that there is no response.
        _ if exchange.is_taken() && e.is_instance_of::<PyStopIteration>(py) => {}
        Some(BodyFault::Incomplete) => {
            log::debug!("Client {} left inside the body of {}", exchange.client(), exchange.request_line());
            exchange.fail_with(Reject::IncompleteBody);
        }
        Some(BodyFault::TimedOut) => {
            log::warn!("Request {} from ip={}: {e}", exchange.request_line(), exchange.client());
            exchange.fail_with(Reject::RequestTimeout);
        }
        Some(BodyFault::Invalid(reject)) => {
            log::warn!("Invalid request from ip={}: {}", exchange.client(), reject.text());
            exchange.fail_with(reject);
        }
        Some(BodyFault::Interrupted) | None if python::is_stop(py, &e) => {
            log::info!("Request {} was broken off by a signal to stop", exchange.request_line());
            exchange.fail_with(Reject::Unavailable);
            return Verdict::Stop;
        }
        Some(BodyFault::Interrupted | BodyFault::Unreadable) | None => {
            logger::exception(py, &format!("Error handling request {}", exchange.request_line()), &e);
            exchange.fail_with(Reject::InternalError);
        }
    }
    Verdict::GoOn
}

/// For the access log: an environ variable by a name in any case.
fn lookup(environ: &Bound<'_, PyDict>, name: &str) -> Option<String> {
    let value = match environ.get_item(name) {
        Ok(Some(value)) => value,
        // A copy: a thread that the application left behind may be changing it.
        _ => environ.copy().ok()?.iter().find(|(key, _)| key.to_string().eq_ignore_ascii_case(name))?.1,
    };
    Some(value.to_string())
}
