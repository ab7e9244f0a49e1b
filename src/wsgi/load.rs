//! Owns: from `module:expression` to the application object.
//! Rule: the expression is a name, or a call of a name with literal arguments; nothing else is evaluated. A name may be one of an
//! object's: `object.attribute`.
//! Never: decides what a failure does; it tells apart "not there" (gunicorn's exit code 4) from "raised" (3).

use pyo3::exceptions::{PyException, PyImportError, PyModuleNotFoundError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict, PyList, PyTuple};

use crate::config::PasteFile;
use crate::launch::Program;
use crate::python;

pyo3::create_exception!(
    rgunicorn.errors,
    AppImportError,
    PyException,
    "The application is not where it was said to be."
);

#[derive(Debug)]
pub enum LoadError {
    /// The spec does not lead to an application: a sentence.
    NotFound(String),
    /// The module itself is not there: a sentence.
    NoModule(String),
    /// Importing or making it raised.
    Raised(PyErr),
}

impl From<PyErr> for LoadError {
    fn from(e: PyErr) -> LoadError {
        LoadError::Raised(e)
    }
}

/// What the expression says.
enum Target<'py> {
    Name(String),
    Call { name: String, args: Bound<'py, PyTuple>, kwargs: Bound<'py, PyDict> },
}

/// Imports the module and finds, or makes, the application.
pub fn load<'py>(py: Python<'py>, spec: &str) -> Result<Bound<'py, PyAny>, LoadError> {
    let (module, expression) = spec.split_once(':').unwrap_or((spec, "application"));
    let target = parse(py, if expression.is_empty() { "application" } else { expression })?;
    let found = import(py, module)?;
    let app = resolve(&found, module, &target)?;
    if app.is_none() {
        return Err(LoadError::NotFound(format!(
            "Failed to find application object: '{expression}' in '{module}'"
        )));
    }
    if !app.is_callable() {
        return Err(LoadError::NotFound(format!("Application object must be callable: '{spec}'")));
    }
    Ok(app)
}

/// Loads what a PasteDeploy file describes.
pub fn paste<'py>(py: Python<'py>, file: &PasteFile) -> Result<Bound<'py, PyAny>, LoadError> {
    let shown = file.path.display().to_string();
    let not_found = |why: &str| LoadError::NotFound(format!("--paste: '{shown}' {why}"));
    let module = python::paste(py)?;
    let variables = file.variables.clone().into_py_dict(py)?;
    let made = module.call_method1(intern!(py, "get_wsgi_app"), (&shown, &file.name, variables));
    let app = match made {
        Err(e) if e.is_instance(py, &module.getattr(intern!(py, "PasteError"))?) => {
            return Err(not_found(&e.value(py).to_string()))
        }
        made => made?,
    };
    match app.is_callable() {
        true => Ok(app),
        false => Err(not_found(&format!("describes no application: {} is not callable", app.repr()?))),
    }
}

/// Has a program load its application.
pub fn ask<'py>(py: Python<'py>, program: &Program) -> Result<Bound<'py, PyAny>, LoadError> {
    let app = program.application(py).map_err(|e| match e.is_instance_of::<AppImportError>(py) {
        true => LoadError::NotFound(e.value(py).to_string()),
        false => LoadError::Raised(e),
    })?;
    match app.is_callable() {
        true => Ok(app),
        false => Err(LoadError::NotFound(format!(
            "Application object must be callable: load() of {} gave {}",
            program.object(py).get_type().fully_qualified_name()?,
            app.repr()?
        ))),
    }
}

/// For Python: raises what keeps the application from being loaded.
pub fn import_app<'py>(py: Python<'py>, spec: &str) -> PyResult<Bound<'py, PyAny>> {
    load(py, spec).map_err(|e| match e {
        LoadError::NotFound(sentence) => AppImportError::new_err(sentence),
        LoadError::NoModule(sentence) => PyModuleNotFoundError::new_err(sentence),
        LoadError::Raised(e) => e,
    })
}

fn import<'py>(py: Python<'py>, module: &str) -> Result<Bound<'py, PyModule>, LoadError> {
    let importlib = py.import(intern!(py, "importlib"))?;
    match importlib.call_method1(intern!(py, "import_module"), (module,)) {
        Ok(found) => Ok(found.cast_into::<PyModule>().map_err(PyErr::from)?),
        Err(e) if e.is_instance_of::<PyImportError>(py) && is_file_name(module) => {
            let name = module.trim_end_matches(".py").replace('/', ".");
            Err(LoadError::NotFound(format!(
                "Failed to find application, did you mean '{name}:application'?"
            )))
        }
        Err(e) if is_missing(py, &e, module) => Err(LoadError::NoModule(format!(
            "No module named '{module}' on the import path (APP, --chdir, --pythonpath)"
        ))),
        Err(e) => Err(LoadError::Raised(e)),
    }
}

/// Whether it is the named module that is missing, and not one that it imports.
fn is_missing(py: Python<'_>, e: &PyErr, module: &str) -> bool {
    let name = e.value(py).getattr(intern!(py, "name")).and_then(|name| name.extract::<String>());
    let is_of = |name: String| module == name || module.starts_with(&format!("{name}."));
    e.is_instance_of::<PyModuleNotFoundError>(py) && name.is_ok_and(is_of)
}

fn is_file_name(module: &str) -> bool {
    module.ends_with(".py") && std::path::Path::new(module).exists()
}

fn resolve<'py>(
    module: &Bound<'py, PyModule>,
    module_name: &str,
    target: &Target<'py>,
) -> Result<Bound<'py, PyAny>, LoadError> {
    let name = match target {
        Target::Name(name) | Target::Call { name, .. } => name,
    };
    let mut found = module.clone().into_any();
    for part in name.split('.') {
        let Some(attribute) = found.getattr_opt(part)? else {
            return Err(LoadError::NotFound(format!(
                "Failed to find attribute '{name}' in '{module_name}'."
            )));
        };
        found = attribute;
    }
    match target {
        Target::Name(_) => Ok(found),
        Target::Call { args, kwargs, .. } => call_factory(&found, args, kwargs),
    }
}

fn call_factory<'py>(
    factory: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
) -> Result<Bound<'py, PyAny>, LoadError> {
    let py = factory.py();
    factory.call(args, Some(kwargs)).map_err(|e| {
        // A TypeError without a frame of the factory's own means that its signature does not take these arguments.
        let inside = e.traceback(py).is_some();
        if e.is_instance_of::<PyTypeError>(py) && !inside {
            LoadError::NotFound(e.value(py).to_string())
        } else {
            LoadError::Raised(e)
        }
    })
}

fn parse<'py>(py: Python<'py>, expression: &str) -> Result<Target<'py>, LoadError> {
    let ast = py.import(intern!(py, "ast"))?;
    let refuse = |why: &str| LoadError::NotFound(format!("Failed to parse '{expression}' as {why}."));
    let parsed = ast.call_method1(intern!(py, "parse"), (expression, "<app>", "eval"));
    let node = match parsed {
        Ok(tree) => tree.getattr(intern!(py, "body"))?,
        Err(e) if python::is_stop(py, &e) => return Err(LoadError::Raised(e)),
        Err(_) => return Err(refuse("an attribute name or function call")),
    };
    if let Some(name) = dotted(&ast, &node)? {
        return Ok(Target::Name(name));
    }
    if !node.is_instance(&ast.getattr(intern!(py, "Call"))?)? {
        return Err(refuse("an attribute name or function call"));
    }
    let Some(name) = dotted(&ast, &node.getattr(intern!(py, "func"))?)? else {
        return Err(refuse("a call of a name"));
    };
    let (args, kwargs) = literals(&ast, &node).map_err(|e| match python::is_stop(py, &e) {
        true => LoadError::Raised(e),
        false => refuse("a call with literal arguments"),
    })?;
    Ok(Target::Call { name, args, kwargs })
}

/// `name` or `name.name`; None for any other expression.
fn dotted(ast: &Bound<'_, PyModule>, node: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    let py = ast.py();
    let (name, attribute) = (ast.getattr(intern!(py, "Name"))?, ast.getattr(intern!(py, "Attribute"))?);
    let mut parts: Vec<String> = Vec::new();
    let mut node = node.clone();
    while node.is_instance(&attribute)? {
        parts.insert(0, node.getattr(intern!(py, "attr"))?.extract()?);
        node = node.getattr(intern!(py, "value"))?;
    }
    if !node.is_instance(&name)? {
        return Ok(None);
    }
    parts.insert(0, node.getattr(intern!(py, "id"))?.extract()?);
    Ok(Some(parts.join(".")))
}

fn literals<'py>(
    ast: &Bound<'py, PyModule>,
    call: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
    let py = ast.py();
    let value = ast.getattr(intern!(py, "literal_eval"))?;
    let args = PyList::empty(py);
    for node in call.getattr(intern!(py, "args"))?.try_iter()? {
        args.append(value.call1((node?,))?)?;
    }
    let kwargs = PyDict::new(py);
    for keyword in call.getattr(intern!(py, "keywords"))?.try_iter()? {
        let keyword = keyword?;
        // `**mapping` has no name; as a key None is refused by the call.
        let name = keyword.getattr(intern!(py, "arg"))?;
        kwargs.set_item(
            name.cast::<pyo3::types::PyString>()?,
            value.call1((keyword.getattr(intern!(py, "value"))?,))?,
        )?;
    }
    Ok((args.to_tuple(), kwargs))
}
