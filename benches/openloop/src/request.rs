//! Owns: the octets of a request. They are made once per class and sent again and again.

use crate::args::{Class, Options};

const PLAIN: &str = "User-Agent: openloop\r\nAccept: */*\r\n";

/// What a browser sends and Nginx adds when it passes the request on.
const BROWSER: &str = "\
X-Forwarded-For: 203.0.113.7\r\n\
X-Forwarded-Proto: https\r\n\
X-Real-IP: 203.0.113.7\r\n\
sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\n\
sec-ch-ua-mobile: ?0\r\n\
sec-ch-ua-platform: \"Linux\"\r\n\
Upgrade-Insecure-Requests: 1\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
Sec-Fetch-Site: same-origin\r\n\
Sec-Fetch-Mode: navigate\r\n\
Sec-Fetch-User: ?1\r\n\
Sec-Fetch-Dest: document\r\n\
Referer: https://www.example.com/accounts/profile/\r\n\
Accept-Encoding: gzip, deflate, br\r\n\
Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
Cookie: sessionid=3f1kq2o0u9b4m7x8c6v5z1a2s3d4f5g6; csrftoken=h7J8k9L0q1W2e3R4t5Y6u7I8o9P0aSdF\r\n";

pub fn octets(class: &Class, options: &Options) -> Vec<u8> {
    let method = if options.post.is_some() { "POST" } else { "GET" };
    let fields = if options.browser { BROWSER } else { PLAIN };
    let mut text = format!("{method} {} HTTP/1.1\r\nHost: {}\r\n{fields}", class.path, options.server);
    if let Some(length) = options.post {
        text += &format!("Content-Type: application/octet-stream\r\nContent-Length: {length}\r\n");
    }
    text += "\r\n";
    text.extend(std::iter::repeat_n('x', options.post.unwrap_or(0)));
    text.into_bytes()
}
