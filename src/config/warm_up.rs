//! Owns: what a warm-up request (`warm_up`) is written as: a path, or a URL where scheme and host matter to the application.
//! Rule: what it gives can stand in a request line and a Host field as it is.
//! Never: sends anything, or decides when.

use std::fmt;
use std::str::FromStr;

/// The host of a request that names none.
const HOST: &str = "localhost";

/// A GET request that the server itself makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmUp {
    pub https: bool,
    /// With its port, if it has one.
    pub host: String,
    /// Path and query (origin-form, RFC 9112 §3.2.1).
    pub target: String,
}

impl FromStr for WarmUp {
    /// The predicate of a sentence.
    type Err = String;

    fn from_str(text: &str) -> Result<WarmUp, String> {
        let no = || {
            format!(
                "'{}' is neither a path like /health nor a URL like https://host/health",
                text.escape_debug()
            )
        };
        let (https, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => (false, text),
        };
        let has_host = rest.len() < text.len();
        let (host, target) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let plain = |octet: u8| octet.is_ascii_graphic() && octet != b'#';
        let is_host = |octet: u8| octet.is_ascii_alphanumeric() || b"-._~:[]%".contains(&octet);
        let begun = if has_host { !host.is_empty() } else { host.is_empty() && !target.is_empty() };
        if !begun || !host.bytes().all(is_host) || !target.bytes().all(plain) {
            return Err(no());
        }
        let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.to_string();
        Ok(WarmUp { https, host: or(host, HOST), target: or(target, "/") })
    }
}

/// As the log shows it.
impl fmt::Display for WarmUp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.https, self.host.as_str()) {
            (false, HOST) => write!(out, "GET {}", self.target),
            (https, host) => {
                write!(out, "GET {}://{host}{}", if https { "https" } else { "http" }, self.target)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_or_a_url() {
        let read = |text: &str| text.parse::<WarmUp>().map(|r| (r.https, r.host, r.target));
        let is = |https, host: &str, target: &str| Ok((https, host.to_string(), target.to_string()));
        assert_eq!(read("/"), is(false, "localhost", "/"));
        assert_eq!(read("/a%20b?c=/d&e"), is(false, "localhost", "/a%20b?c=/d&e"));
        assert_eq!(read("https://shop.example"), is(true, "shop.example", "/"));
        assert_eq!(read("http://[::1]:8000/x?y"), is(false, "[::1]:8000", "/x?y"));
        for wrong in [
            "",
            "health",
            "https://",
            "https:///x",
            "ftp://h/",
            "/a b",
            "/a#b",
            "/ä",
            "http://a@b/",
            "http://h?x",
            "//h/x\n",
        ] {
            let why = format!(
                "'{}' is neither a path like /health nor a URL like https://host/health",
                wrong.escape_debug()
            );
            assert_eq!(read(wrong), Err(why));
        }
    }

    #[test]
    fn it_is_shown_as_it_was_written() {
        for text in ["/health?full", "https://localhost/", "http://shop.example:8000/a"] {
            assert_eq!(text.parse::<WarmUp>().unwrap().to_string(), format!("GET {text}"));
        }
    }
}
