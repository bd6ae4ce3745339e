//! One SMTP session on standard input and output, for super-servers (tcpserver, tcpsvd, xinetd, couriertcpd). It
//! accepts every mail after a while and discards it: what is measured is the super-server's limit.

use std::io::{self, BufRead, Write};
use std::time::Duration;

/// Serves a session until QUIT or the end of the input.
pub fn serve(mut input: impl BufRead, mut output: impl Write, hold: Duration) -> io::Result<()> {
    let mut say = |text: &[u8]| output.write_all(text).and_then(|()| output.flush());
    say(b"220 server.bench.example ESMTP\r\n")?;
    let mut in_message = false;
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let text = line.trim_ascii_end();
        if in_message {
            if text == b"." {
                in_message = false;
                std::thread::sleep(hold);
                say(b"250 ok\r\n")?;
            }
            continue;
        }
        match text.get(..4).unwrap_or(text).to_ascii_uppercase().as_slice() {
            b"EHLO" | b"HELO" | b"MAIL" | b"RCPT" | b"RSET" | b"NOOP" => say(b"250 ok\r\n")?,
            b"DATA" => {
                in_message = true;
                say(b"354 go ahead\r\n")?;
            }
            b"QUIT" => return say(b"221 bye\r\n"),
            _ => say(b"500 5.5.2 what?\r\n")?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_a_mail_and_says_goodbye() {
        let said = b"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\nQUIT\r\n.\r\nfoo\r\nQUIT\r\nNOOP\r\n";
        let mut answers = Vec::new();
        serve(&said[..], &mut answers, Duration::ZERO).expect("it can be written to");
        let codes: Vec<&[u8]> =
            answers.split(|&byte| byte == b'\n').filter_map(|line| line.get(..3)).collect();
        let expected = ["220", "250", "250", "250", "354", "250", "500", "221"];
        assert_eq!(codes, expected.map(str::as_bytes));
    }
}
