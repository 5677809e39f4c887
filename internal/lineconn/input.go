package lineconn

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	MaxLine       = 1024                  // bytes in the longest line, without its newline and a carriage return before it
	readBuffer    = 64                    // bytes; small, because each connection has one, and lines are short
	burst         = 100                   // chunks of input that are accepted without delay
	chunkInterval = 20 * time.Millisecond // for each later chunk
	linger        = time.Second           // how long Close discards input
)

// ErrTooLong is the error of a line of more than MaxLine bytes.
var ErrTooLong = fmt.Errorf("the line is too long (at most %d bytes)", MaxLine)

// ReadLine returns the next line, without surrounding spaces and telnet commands. Before it reads, it waits until
// everything sent to the peer is written, so that a peer that does not read is not read from either. At the end of the
// input, a last line without a newline counts; after it, the error is io.EOF. If a line is longer than MaxLine bytes,
// ReadLine returns its first MaxLine bytes with ErrTooLong and discards the rest. A peer that sends more than a person
// types or pastes is slowed down. After End, and on a failed connection, the error is not io.EOF.
func (c *Conn) ReadLine() (string, error) {
	c.Flush()
	line, complete := c.scan(nil)
	for !complete && !c.inputEnded && c.Err() == nil {
		n, err := c.net.Read(c.buffer[:])
		c.inputEnded = err == io.EOF
		if err != nil && !c.inputEnded && c.Err() == nil {
			c.closeBecause(err)
		}
		c.unread = c.buffer[:n]
		line, complete = c.scan(line)
		if !complete {
			c.throttle()
		}
	}
	if err := c.Err(); err != nil {
		return "", err
	}
	if !complete && len(line) == 0 {
		return "", io.EOF
	}
	c.throttle()
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) > MaxLine {
		return strings.TrimSpace(string(line[:MaxLine])), ErrTooLong
	}
	return strings.TrimSpace(string(line)), nil
}

// scan moves input from unread to line, up to a newline. It reports whether the line is complete or too long.
func (c *Conn) scan(line []byte) ([]byte, bool) {
	for len(c.unread) > 0 {
		b := c.unread[0]
		c.unread = c.unread[1:]
		switch {
		case !c.telnet.typed(b):
		case c.skipLine:
			c.skipLine = b != '\n'
		case b == '\n':
			return line, true
		default:
			line = append(line, b)
			c.skipLine = len(bytes.TrimSuffix(line, []byte("\r"))) > MaxLine
			if c.skipLine {
				return line, true
			}
		}
	}
	return line, false
}

// throttle limits the rate of input: after a burst, it sleeps so that one chunk takes one chunkInterval. A chunk is a
// line, or one Read that completes no line.
func (c *Conn) throttle() {
	now := time.Now()
	if c.nextFree.Before(now) {
		c.nextFree = now
	}
	c.nextFree = c.nextFree.Add(chunkInterval)
	time.Sleep(c.nextFree.Sub(now) - burst*chunkInterval)
}

// telnet is the state of the telnet protocol (RFC 854) after the input so far. It says what the next byte is.
type telnet byte

const (
	text    telnet = iota // typed
	command               // follows IAC
	option                // follows IAC and WILL, WONT, DO or DONT
	inside                // between IAC SB and IAC SE, where programs exchange options
	leaving               // follows IAC in there
)

// typed reports whether b, the next byte, was typed. Otherwise it belongs to a telnet command.
func (t *telnet) typed(b byte) bool {
	const se, sb, will, iac = 240, 250, 251, 255
	switch was := *t; {
	case was == text && b == iac:
		*t = command
	case was == command && b == sb, was == inside && b != iac, was == leaving && b != se:
		*t = inside
	case was == inside:
		*t = leaving
	case was == command && will <= b && b < iac:
		*t = option
	default:
		*t = text
		// IAC IAC is the byte 255. Bytes below 240 are not commands: a stray IAC removes no newline.
		return was == text || was == command && (b < se || b == iac)
	}
	return false
}
