//! What a client gets, whatever it sends, and how the server starts and ends.

use std::io::{Read, Write};
use std::net::TcpListener;

use rustix::process::Signal;

use crate::common::qpatch;
use crate::rig::{Answer, Home, Server, case, key, now_secs, status, until};

#[test]
fn programs_get_what_gate_show_prints() {
    for name in
        ["show-json", "show-json-several", "show-prometheus-several", "show-duplicates-json"]
    {
        let home = case(name);
        let server = Server::start(&home);
        assert_eq!(server.warnings, "");
        for (path, format, content_type) in [
            ("/status.json", "json", "application/json"),
            ("/metrics", "prometheus", "text/plain; version=0.0.4; charset=utf-8"),
        ] {
            let printed =
                qpatch(&["gate", "show", home.to_str().unwrap(), "--format", format]).ok();
            let answer = server.get(path);
            assert_eq!(answer.header("content-type"), Some(content_type));
            assert_eq!((answer.status, answer.body), (200, printed.out), "{name} {path}");
        }
    }
}

#[test]
fn every_answer_has_the_headers_that_keep_a_browser_strict() {
    let home = Home::new();
    home.write(status(&key(b"a.example", [20, 3, 1, 5, 20], 0, b"")));
    let server = Server::start(home.path());
    for (method, path, status, content_type) in [
        ("GET", "/", 200, "text/html; charset=utf-8"),
        ("GET", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8"),
        ("GET", "/status.json", 200, "application/json"),
        ("GET", "/history.json", 200, "application/json"),
        ("GET", "/metrics/", 404, "text/plain; charset=utf-8"),
        ("GET", "/../etc/passwd", 404, "text/plain; charset=utf-8"),
        ("GET", "/%2e%2e/x?y#z", 404, "text/plain; charset=utf-8"),
        ("POST", "/", 405, "text/plain; charset=utf-8"),
        ("DELETE", "/nothing", 405, "text/plain; charset=utf-8"),
        ("OPTIONS", "*", 405, "text/plain; charset=utf-8"),
        ("CONNECT", "127.0.0.1:80", 405, "text/plain; charset=utf-8"),
    ] {
        let answer = server.ask(method, path, "localhost");
        assert_eq!(answer.status, status, "{method} {path}: {}{}", answer.head, answer.body);
        for (name, value) in [
            ("content-type", content_type),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cross-origin-opener-policy", "same-origin"),
            ("connection", "close"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{method} {path}: {}", answer.head);
        }
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        let allow = answer.header("allow");
        assert_eq!(allow, (status == 405).then_some("GET, HEAD"), "{method} {path}");
    }
    for path in ["/", "/metrics", "/status.json", "/history.json", "/nothing"] {
        let (get, head) = (server.get(path), server.ask("HEAD", path, "localhost"));
        assert_eq!((head.status, &head.body[..]), (get.status, ""), "{path}");
        assert_eq!(head.header("content-length"), Some(&get.body.len().to_string()[..]), "{path}");
    }
}

#[test]
fn a_request_names_this_server() {
    let home = Home::new();
    home.write(status(b""));
    let server = Server::with(home.path(), &["--host", "mail.example", "--host", "b.example"]);
    for host in ["127.0.0.1", "[::1]:80", "localhost:9188", "Mail.Example", "b.example:443"] {
        assert_eq!(server.ask("GET", "/status.json", host).status, 200, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example:9188", "localhost.evil.example", "\u{e9}"]
    {
        let answer = server.ask("GET", "/status.json", host);
        assert_eq!(answer.status, 421, "{host}");
        assert_eq!(
            answer.body,
            "421 Misdirected Request: this is not a name of this server; ask for its address, or start it with --host \
             NAME\n"
        );
        assert_eq!(server.ask("POST", "/", host).status, 421, "{host}");
    }
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 421),
        ("GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 421),
        ("GET http://localhost/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        ("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
    ] {
        assert_eq!(Answer::parse(&server.send(request)).status, status, "{request}");
    }
}

#[test]
fn nothing_that_a_client_sends_stops_the_server() {
    let home = Home::new();
    home.write(status(b""));
    let server = Server::start(home.path());
    let line = |text: &str, times: usize| text.repeat(times);
    let host = "GET / HTTP/1.1\r\nHost: localhost\r\n";
    let mut sent: Vec<(Vec<u8>, Option<u16>)> = vec![
        (format!("{host}X: {}\r\n\r\n", line("a", 17 << 10)).into(), Some(431)),
        (format!("{host}X: {}", line("a", 1 << 20)).into(), Some(431)),
        (format!("{host}{}\r\n", line("X: y\r\n", 65)).into(), Some(431)),
        (format!("{host}{}\r\n", line("X: y\r\n", 60)).into(), Some(200)),
        (
            format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", line("a", 15 << 10)).into(),
            Some(404),
        ),
        (format!("GET /{} HTTP/1.1\r\n", line("a", 70_000)).into(), None),
        (
            format!("GET /?key={} HTTP/1.1\r\nHost: localhost\r\n\r\n", line("%", 10_000)).into(),
            Some(200),
        ),
        (format!("{host}Content-Length: 99999999999999999999\r\n\r\n").into(), Some(400)),
        (format!("{host}Content-Length: 5000000000\r\n\r\nabc").into(), Some(200)),
        (
            format!("{host}Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n").into(),
            Some(200),
        ),
        (format!("{host}Expect: 100-continue\r\nUpgrade: h2c\r\n\r\n").into(), Some(200)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), None),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Some(400)),
        (b"GET / HTTP/1.1\r\nHost: local\0host\r\n\r\n".to_vec(), Some(400)),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n".to_vec(), Some(400)),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: \xff\r\n\r\n".to_vec(), None),
        (vec![0; 100_000], Some(400)),
        (vec![b'\n'; 100_000], None),
    ];
    // Bytes without a plan, each time the same ones.
    let mut bits = 1u32;
    for length in 1..40 {
        let mut noise: Vec<u8> = Vec::new();
        for _ in 0..length * 7 {
            bits ^= bits << 13;
            bits ^= bits >> 17;
            bits ^= bits << 5;
            noise.push(bits as u8);
        }
        noise.extend(b"\r\n\r\n");
        sent.push((noise, None));
    }
    for (bytes, status) in &sent {
        let answer = server.send(bytes);
        // If the client has sent more than was read, its answer may be lost.
        if let Some(status) = status
            && !answer.is_empty()
        {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
            assert_eq!(Answer::parse(&answer).status, *status, "{start:?}");
        }
    }
    assert_eq!(server.get("/").status, 200);
    let (code, said) = server.end(Signal::TERM);
    assert_eq!((code, said), (Some(0), Vec::new()), "no panic was reported");
}

#[test]
fn clients_without_room_wait_for_it() {
    let home = Home::new();
    home.write(status(b""));
    let server = Server::start(home.path());
    let mut slow: Vec<_> = (0..64).map(|_| server.connect()).collect();
    for client in &mut slow {
        client.write_all(b"GET /status").unwrap();
    }
    // More than there is room for: some of these are served only after a slow one has gone.
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.write_all(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    slow.truncate(60);
    for client in &mut clients {
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(Answer::parse(&answer).status, 200);
    }
    // It ends although there are clients that have asked for nothing.
    let (code, said) = server.end(Signal::INT);
    assert_eq!((code, said), (Some(0), Vec::new()));
}

#[test]
fn the_page_follows_the_status() {
    let home = Home::new();
    let server = Server::start(home.path());
    let file = home.path().join("queue/lock/gatestatus");
    let file = file.display();
    assert_eq!(
        server.warnings,
        format!(
            "qpatch: warning: {file}: no such file: this qmail has no gate\n  build one: qpatch apply TREE, then make \
             setup check in TREE (which makes the file), then restart qmail\n  the page says so until there is a \
             status\n"
        )
    );
    let page_with = |status: u16, text: &str| {
        until(text, || {
            let answer = server.get("/");
            (answer.status == status && answer.body.contains(text)).then_some(answer.body)
        })
    };
    page_with(503, "There is no status.\n");
    for (path, body) in [
        ("/metrics", format!("{file}: no such file: this qmail has no gate\n  build one")),
        (
            "/status.json",
            "{\"error\":{\"help\":\"build one: qpatch apply TREE, then make".to_string(),
        ),
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 503);
        assert!(answer.body.starts_with(&body), "{}", answer.body);
    }
    let keys = key(b"a.example", [20, 3, 1, 5, 7], now_secs(), b"421%20busy%0a<b>%25");
    home.write(status(&keys));
    let page = page_with(200, "limits count\nwritten ");
    for text in [
        "<tr class=\"lowered\"><th scope=\"row\">a.example</th><td class=\"number\" data-name=\"limit\">20</td>",
        "data-name=\"allowed\">7</td><td class=\"number\" data-name=\"running\">3<meter max=\"7\" value=\"3\">",
        "<td>7 instead of 20</td><td>",
        "<td class=\"words\">421 busy &lt;b&gt;%</td>",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    // A qmail-rspawn that is gone: nobody has this number.
    let gone = String::from_utf8(status(&keys)).unwrap();
    let gone = gone.replace(&format!("pid\t{}\n", std::process::id()), "pid\t4294967295\n");
    home.write(gone);
    page_with(200, "this process is gone; these are its last figures");
    let old = String::from_utf8(status(&keys)).unwrap();
    let old = old.replace(&format!("written\t{}\n", now_secs()), "written\t1000000000\n");
    home.write(old);
    page_with(200, "This status is old: a running gate writes it at least once a minute.");
    home.write("qpatch-gate\t2\t7\nend\t7\n");
    page_with(
        503,
        "not a status file of this version\n  the gate and qpatch are of different versions",
    );
    home.write("");
    page_with(503, "empty: no gate has written it yet");
    home.remove_status();
    page_with(503, "no such file");
}

#[test]
fn names_are_text_and_the_rest_is_a_click_away() {
    let home = Home::new();
    let hostile: [&[u8]; 5] = [
        b"<script>alert(1)</script>",
        b"\"onmouseover='x'",
        b"a&lt;b",
        b"\xff\x80<!--live-->",
        &[0xff; 255],
    ];
    let mut keys: Vec<u8> = Vec::new();
    for name in hostile {
        keys.extend(key(name, [20, 9, 9, 9, 20], 0, name));
    }
    for number in 0..3995 {
        keys.extend(key(format!("d{number:04}.example").as_bytes(), [20, 1, 0, 0, 20], 0, b""));
    }
    home.write(status(&keys));
    let server = Server::start(home.path());
    let page = server.get("/").body;
    let rows = |page: &str| page.matches("<th scope=\"row\">").count();
    assert_eq!(rows(&page), 200 + 5);
    assert!(page.contains("and 3800 more keys; <a href=\"/?rows=all\">show all</a>"));
    for text in [
        "<th scope=\"row\">&lt;script&gt;alert(1)&lt;/script&gt;</th>",
        "<th scope=\"row\">&quot;onmouseover=&#39;x&#39;</th>",
        "<th scope=\"row\">a&amp;lt;b</th>",
        "<th scope=\"row\">%ff%80&lt;!--live--&gt;</th>",
        &format!("<th scope=\"row\"><span title=\"{0}\">{0}</span></th>", "%ff".repeat(255)),
        &format!("<td class=\"words\">{}...</td>", &"%ff".repeat(255)[..597]),
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
    assert_eq!(rows(&server.get("/?rows=all").body), 4000 + 5);
    let found = server.get("/?key=D039&rows=all").body;
    assert_eq!((rows(&found), found.contains("value=\"d039\"")), (10, true));
    let found = server.get("/?key=%25FF%25&rows=all").body;
    assert_eq!(rows(&found), 2 * 2, "{found}");
    assert!(server.get("/?key=nothing.example").body.contains("No key has this in its name."));
    let history = until("a sample", || {
        let history = server.get("/history.json").body;
        (!history.contains("\"keys\":[]")).then_some(history)
    });
    assert!(history.starts_with(
        "{\"every_secs\":10,\"samples_max\":360,\"all\":{\"kind\":null,\"key\":\"\",\"title\":\"all keys\",\
         \"running\":[40],\"held\":[10],\"away\":[45],\"limit\":[90]}"
    ));
    assert_eq!(history.matches("\"kind\":\"domain\"").count(), 40);
}

#[test]
fn what_cannot_be_listened_on_is_an_error() {
    let home = Home::new();
    let home = home.path().to_str().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (listen, expected) in [
        (
            &taken[..],
            format!(
                "qpatch: {taken}: cannot listen: Address already in use (os error 98)\n  another program listens there \
                 (ss -ltnp shows which); name another port with --listen\n"
            ),
        ),
        (
            "203.0.113.1:9188",
            "qpatch: 203.0.113.1:9188: cannot listen: Cannot assign requested address (os error 99)\n  this machine \
             has no such address; name one that it has (ip addr) with --listen\n"
                .to_string(),
        ),
    ] {
        let run = qpatch(&["gate", "serve", home, "--listen", listen]);
        assert_eq!((run.code, &run.out[..], run.err), (1, "", expected));
    }
    for (args, expected) in [
        (
            ["--listen", "localhost"],
            "write an address and a port, such as 127.0.0.1:9188 or [::1]:9188",
        ),
        (
            ["--host", "http://a.example"],
            "write a name alone, such as mail.example.com: no scheme and no port",
        ),
    ] {
        let run = qpatch(&[&["gate", "serve", home][..], &args].concat());
        assert_eq!((run.code, run.err.contains(expected)), (2, true), "{}", run.err);
    }
    let run = qpatch(&["gate", "serve", "/nonexistent"]);
    assert_eq!(
        (run.code, run.err.starts_with("qpatch: /nonexistent: cannot look into it")),
        (1, true)
    );
}
