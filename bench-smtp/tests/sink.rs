//! The sink and the name server alone: no tree, no Postfix, no namespace.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use qpatch_bench_smtp::dns::{NameServer, Zone};
use qpatch_bench_smtp::measure::peak;
use qpatch_bench_smtp::sink::{Behaviour, Greylist, Server, Service, Sink, local_part};
use qpatch_bench_smtp::tls::StartTls;
use qpatch_test_support::port::HeldPort;

const HERE: Ipv4Addr = Ipv4Addr::new(127, 3, 0, 1);

/// A sink with one server, and its port: tests run at the same time.
fn sink(behaviour: Behaviour, mails: usize, starttls: StartTls) -> (Sink, HeldPort) {
    let at = HeldPort::of(HERE);
    let servers = [Server { address: HERE, behaviour }];
    let sink = Sink::start(&servers, at.port(), vec![0; mails], 1, starttls);
    (sink.expect("the sink starts"), at)
}

struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects and returns the greeting as well.
    fn connect(at: &HeldPort) -> (Client, String) {
        let mut client = Client::silent(at);
        let greeting = client.line();
        (client, greeting)
    }

    fn silent(at: &HeldPort) -> Client {
        let stream = TcpStream::connect(at.address()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let reader = BufReader::new(stream.try_clone().expect("a second handle"));
        Client { stream, reader }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("an answer");
        line
    }

    fn say(&mut self, text: &str) -> String {
        self.stream.write_all(text.as_bytes()).expect("the sink reads");
        self.line()
    }

    /// Sends a whole mail and returns all answers.
    fn send(&mut self, mail: u32) -> Vec<String> {
        let recipient = format!("RCPT TO:<{}@d000.bench.example>\r\n", local_part(mail));
        let lines = [
            "HELO me\r\n",
            "MAIL FROM:<>\r\n",
            &recipient,
            "DATA\r\n",
            "Subject: x\r\n\r\n..\r\n.\r\n",
        ];
        lines.iter().map(|line| self.say(line)).collect()
    }
}

#[test]
fn mail_is_held_and_then_accepted() {
    let hold = Duration::from_millis(120);
    let (sink, at) = sink(Behaviour::Serve(Service::holding(hold)), 3, StartTls::Unknown);
    let (mut client, greeting) = Client::connect(&at);
    assert!(greeting.starts_with("220 "), "{greeting}");
    let started = Instant::now();
    assert!(client.send(2).iter().all(|answer| answer.starts_with(['2', '3'])));
    assert!(started.elapsed() >= hold);
    // Another one in the same session, and all of its commands at once.
    client.say("RSET\r\n");
    let all = format!("MAIL FROM:<>\r\nRCPT TO:<{}@d>\r\nDATA\r\n.\r\nQUIT\r\n", local_part(0));
    assert!(client.say(&all).starts_with("250"));
    let rest: Vec<String> = (0..4).map(|_| client.line()).collect();
    assert!(rest[2].starts_with("250") && rest[3].starts_with("221"), "{rest:?}");
    assert_eq!(sink.accepted(0), 2);
    let record = sink.stop().expect("a record");
    let mails: Vec<u32> = record.accepted.iter().map(|accepted| accepted.mail).collect();
    assert_eq!(mails, [2, 0]);
    let steps = &record.servers[0].steps;
    assert_eq!(steps.iter().map(|step| step.sessions).collect::<Vec<_>>(), [1, 0]);
    assert!(steps[1].at_us - steps[0].at_us >= 2 * hold.as_micros() as u64);
}

#[test]
fn a_mail_that_comes_twice_is_told_twice_and_counted_once() {
    let (sink, at) = sink(Behaviour::Serve(Service::holding(Duration::ZERO)), 1, StartTls::Unknown);
    for _ in 0..2 {
        let (mut client, _) = Client::connect(&at);
        assert_eq!(client.send(0).len(), 5);
    }
    let (mut client, _) = Client::connect(&at);
    assert!(client.send(7)[2].starts_with("550"), "a mail that there is not");
    assert_eq!(sink.accepted(0), 1);
    let record = sink.stop().expect("a record");
    assert_eq!((record.accepted.len(), record.strangers), (2, 1));
}

#[test]
fn who_is_one_too_many_is_greeted_with_421() {
    let service = Service { hold: Duration::ZERO, sessions: Some(2), greylist: Greylist::Off };
    let (sink, at) = sink(Behaviour::Serve(service), 1, StartTls::Unknown);
    let (mut first, _) = Client::connect(&at);
    let (_second, _) = Client::connect(&at);
    let (mut third, greeting) = Client::connect(&at);
    assert!(greeting.starts_with("421 "), "{greeting}");
    assert_eq!(third.line(), "", "and the connection is closed");
    assert!(first.say("QUIT\r\n").starts_with("221"));
    let (_fourth, greeting) = Client::connect(&at);
    assert!(greeting.starts_with("220 "), "{greeting}");
    let record = sink.stop().expect("a record");
    assert_eq!((peak(&record.servers[0].steps), record.servers[0].refused), (2, 1));
}

#[test]
fn a_greylisted_recipient_is_accepted_the_second_time() {
    let service = Service { hold: Duration::ZERO, sessions: None, greylist: Greylist::On };
    let (sink, at) = sink(Behaviour::Serve(service), 1, StartTls::Unknown);
    let (mut client, _) = Client::connect(&at);
    assert!(client.say("MAIL FROM:<>\r\n").starts_with("250"));
    let recipient = format!("RCPT TO:<{}@d>\r\n", local_part(0));
    assert!(client.say(&recipient).starts_with("451"));
    assert!(client.say(&recipient).starts_with("250"));
    let record = sink.stop().expect("a record");
    assert_eq!(record.servers[0].greylisted, 1);
}

#[test]
fn a_server_that_hangs_has_sessions_and_says_nothing() {
    let (sink, at) = sink(Behaviour::Hang, 1, StartTls::Unknown);
    let mut client = Client::silent(&at);
    // The kernel has taken the connection; the sink may need a while to.
    while sink.sessions() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    client.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let error = client.reader.read_line(&mut String::new()).expect_err("nothing comes");
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    drop(client);
    let record = sink.stop().expect("a record");
    assert_eq!(peak(&record.servers[0].steps), 1);
}

#[test]
fn a_server_that_refuses_does_not_listen() {
    let (sink, at) = sink(Behaviour::Refuse, 1, StartTls::Unknown);
    let error = TcpStream::connect(at.address()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(sink.stop().expect("a record").servers[0].steps.is_empty());
}

#[test]
fn three_hundred_sessions_at_once() {
    let (sink, at) =
        sink(Behaviour::Serve(Service::holding(Duration::ZERO)), 300, StartTls::Unknown);
    let mut clients: Vec<Client> = (0..300).map(|_| Client::connect(&at).0).collect();
    for (mail, client) in (0..).zip(&mut clients) {
        client.send(mail);
    }
    drop(clients);
    assert_eq!(sink.sessions(), 300);
    // A mail is counted when its answer has been written, which a client may see before: the record is complete.
    let record = sink.stop().expect("a record");
    assert_eq!((record.accepted.len(), peak(&record.servers[0].steps)), (300, 300));
}

#[test]
fn the_name_server_knows_its_names_and_no_others() {
    let mut zone = Zone::default();
    zone.exchangers.insert("d000.bench.example".to_owned(), "mx0.bench.example".to_owned());
    zone.hosts = HashMap::from([("mx0.bench.example".to_owned(), HERE)]);
    let server = NameServer::start(SocketAddrV4::new(HERE, 0), zone).expect("it starts");
    let ask = |name: &str, kind| {
        let socket = UdpSocket::bind((HERE, 0)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        let bytes = message.to_vec().expect("a query");
        socket.send_to(&bytes, server.at()).expect("sent");
        let mut buffer = [0; 1024];
        let (count, _) = socket.recv_from(&mut buffer).expect("an answer");
        let answer = Message::from_vec(&buffer[..count]).expect("a message");
        assert_eq!((answer.metadata.id, answer.metadata.message_type), (7, MessageType::Response));
        let data = answer.answers.iter().map(|record| record.data.to_string());
        (answer.metadata.response_code, data.collect::<Vec<_>>())
    };
    let mx = vec!["10 mx0.bench.example.".to_owned()];
    assert_eq!(ask("d000.bench.example.", RecordType::MX), (ResponseCode::NoError, mx.clone()));
    assert_eq!(ask("D000.bench.EXAMPLE.", RecordType::ANY), (ResponseCode::NoError, mx));
    let a = vec!["127.3.0.1".to_owned()];
    assert_eq!(ask("mx0.bench.example.", RecordType::A), (ResponseCode::NoError, a));
    assert_eq!(ask("d000.bench.example.", RecordType::A), (ResponseCode::NoError, vec![]));
    assert_eq!(ask("elsewhere.example.", RecordType::MX), (ResponseCode::NXDomain, vec![]));
}

/// A whole mail through openssl(1), which checks that the sink's TLS is TLS.
#[test]
fn a_real_client_sends_mail_over_starttls() {
    let Ok(_) = Command::new("openssl").arg("version").output() else {
        return qpatch_test_support::skip("no openssl on this machine");
    };
    let service = Service::holding(Duration::ZERO);
    let (sink, at) = sink(Behaviour::Serve(service), 3, StartTls::Offered);
    for (mail, version) in [(0, "-tls1_2"), (1, "-tls1_3")] {
        let mut client = Command::new("openssl")
            .args(["s_client", "-starttls", "smtp", "-quiet", "-crlf", version, "-connect"])
            .arg(at.address().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl starts");
        let mut input = client.stdin.take().expect("its input");
        let mut output = BufReader::new(client.stdout.take().expect("its output"));
        let mut answers = Vec::new();
        // The last line of the answer to openssl's own EHLO comes first; the next answers are to ours.
        let recipient = format!("RCPT TO:<{}@d000.bench.example>\n", local_part(mail));
        for said in ["NOOP\n", "MAIL FROM:<>\n", &recipient, "DATA\n", ".\n", "QUIT\n"] {
            input.write_all(said.as_bytes()).expect("openssl reads");
            let mut answer = String::new();
            while !answer.contains(' ') || answer.ends_with("STARTTLS\r\n") {
                answer.clear();
                assert!(output.read_line(&mut answer).expect("an answer") > 0, "{answers:?}");
            }
            answers.push(answer);
        }
        let codes: Vec<&str> = answers.iter().map(|answer| &answer[..3]).collect();
        assert_eq!(codes, ["250", "250", "250", "354", "250", "221"], "{answers:?}");
        drop(input);
        assert!(client.wait().expect("it ends").success());
    }
    // And a client that does not want TLS.
    let (mut client, _) = Client::connect(&at);
    assert_eq!(client.say("EHLO me\r\n"), "250-sink.bench.example\r\n");
    assert_eq!([client.line(), client.line()], ["250-PIPELINING\r\n", "250 STARTTLS\r\n"]);
    client.send(2);
    let record = sink.stop().expect("its record");
    assert_eq!((record.accepted.len(), record.encrypted), (3, 2));
}
